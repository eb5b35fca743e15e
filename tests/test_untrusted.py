"""Files from strangers: names, links, kinds of files, JSON; and backbones of them."""

import json
import os
import pathlib
import re
import shutil
import signal

import pytest

from prompt_tuning.interop import untrusted
from prompt_tuning.interop.lazy import UnreadableError
from prompt_tuning.interop.load import open_source
from prompt_tuning.interop.untrusted import Stated

GOLDENS = pathlib.Path(__file__).parent / "goldens"


@pytest.mark.parametrize(
  "name",
  ["", ".", "..", "a/b", "/a", "a/", "../a", "a\\b", "C:a", "a\0", None, 3, ["a"]],
)
def test_names_that_lead_elsewhere(tmp_path, name):
  assert not untrusted.is_plain(name)
  with pytest.raises(UnreadableError, match="which is no name of a file in it"):
    untrusted.inside(tmp_path, name)


@pytest.mark.parametrize("name", ["x" * 5000, "\ud800", "absent"])
def test_names_of_nothing(tmp_path, name):
  with pytest.raises(UnreadableError, match="cannot be read"):
    untrusted.inside(tmp_path, name)


def test_links_within_the_folder_are_followed(tmp_path):
  (tmp_path / "..data").mkdir()
  (tmp_path / "..data" / "x").write_text("{}")
  (tmp_path / "x").symlink_to("..data/x")
  assert untrusted.read_object(untrusted.inside(tmp_path, "x")) == {}
  sibling = tmp_path.with_name(tmp_path.name + "2")
  sibling.mkdir()
  (sibling / "x").write_text("{}")
  (tmp_path / "y").symlink_to(sibling / "x")
  with pytest.raises(UnreadableError, match="is a link that leaves its folder"):
    untrusted.inside(tmp_path, "y")


def test_fields_are_of_their_kinds():
  stated = Stated({"a": {"b": True, "c": ["x", "x"], "n": None}}, "file").child("a")
  assert stated.flag("b") and not stated.has("n") and not stated.has("z")
  for read, words in (
    (lambda: stated.count("b"), "'file' says a.b is True; it must be a whole number"),
    (lambda: stated.texts("c"), "'file' says a.c is .*a list of texts, each once"),
    (lambda: stated.text("n"), "'file' says a.n is None; it must be a text"),
    (lambda: stated.text("z"), "'file' lacks a.z: a text"),
    (lambda: stated.child("c"), "a.c is .*an object"),
  ):
    with pytest.raises(UnreadableError, match=words):
      read()


def test_files_that_are_too_long_are_not_read_whole(tmp_path, monkeypatch):
  monkeypatch.setattr(untrusted, "JSON_BYTES", 10)
  (tmp_path / "x").write_text('{"a": "long"}')
  with pytest.raises(UnreadableError, match="is longer than 10 bytes"):
    untrusted.read_object(tmp_path / "x")


@pytest.mark.parametrize("make", [os.mkfifo, pathlib.Path.mkdir])
@pytest.mark.parametrize(
  ("folder", "name"),
  [
    ("t5_1_1", "config.json"),
    ("t5_1_1", "model.safetensors"),
    ("mt5_sharded", "model.safetensors.index.json"),
    ("mt5_sharded", None),
  ],
)
def test_what_is_no_file_is_not_opened(tmp_path, folder, name, make):
  shutil.copytree(GOLDENS / "hugging_face" / folder, tmp_path / "x")
  shards = sorted((tmp_path / "x").glob("model-*.safetensors"))
  path = shards[0] if name is None else tmp_path / "x" / name
  path.unlink()
  make(path)
  signal.alarm(30)
  try:
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "x"))):
      open_source(tmp_path / "x")
  finally:
    signal.alarm(0)


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ('{"model_type": "t5", "d_model": 1e999}', "1e999, which is not finite"),
    ('{"model_type": ' * 80 + '"t5"' + "}" * 80, "nested deeper than 64"),
    ("[" * 100_000, "cannot be read"),
    ('["t5"]', "holds list, not an object"),
    ('{"model_type": ["t5"]}', r"says model_type \['t5'\]"),
  ],
)
def test_configurations_that_are_none(tmp_path, text, words):
  shutil.copytree(GOLDENS / "hugging_face" / "t5_1_1", tmp_path / "x")
  (tmp_path / "x" / "config.json").write_text(text)
  with pytest.raises(UnreadableError, match=f"config.json'.*{words}"):
    open_source(tmp_path / "x")


@pytest.mark.parametrize("shard", ["../x/model.safetensors", "..", ["a"], "a\0b", ""])
def test_shards_are_files_of_their_folder(tmp_path, shard):
  shutil.copytree(GOLDENS / "hugging_face" / "mt5_sharded", tmp_path / "x")
  path = tmp_path / "x" / "model.safetensors.index.json"
  index = json.loads(path.read_text())
  index["weight_map"][min(index["weight_map"])] = shard
  path.write_text(json.dumps(index))
  with pytest.raises(UnreadableError, match="The shard .* is missing"):
    open_source(tmp_path / "x")

"""Every writer, in every place that a user may name: nobody's files are lost."""

import dataclasses
import functools
import os
import pathlib
import re
import shutil
import types
from collections.abc import Callable
from typing import Any

import jax
import pytest
import serving_tools
import test_remote_runs

from prompt_tuning import answer, export
from prompt_tuning.backbones.t5 import files as t5_files
from prompt_tuning.core import files, folders, owned
from prompt_tuning.engine import product
from prompt_tuning.interop import (
  huggingface,
  peft,
  prompts,
  serving_export,
  serving_programs,
  serving_settings,
  t5x,
)
from prompt_tuning.interop.load import load

bucket = test_remote_runs.bucket


@dataclasses.dataclass(frozen=True)
class Made:
  """What is written: a small backbone, prompts, and programs that were lowered once."""

  loaded: Any
  prompt: product.Product
  prefix: product.Product
  served: Any

  def scaled(self, by):
    """The backbone's weights, other ones for each number."""
    return jax.tree.map(lambda x: x * by, self.loaded.params)


@pytest.fixture(scope="module")
def made(tiny_folder, tmp_path_factory):
  def one(method):
    folder = tmp_path_factory.mktemp(method)
    path = serving_tools.made(tiny_folder, folder, method, PROMPT_LENGTH=2)
    found = product.load(path)
    found.card["backbone"]["architecture"] = load(tiny_folder).backbone.config.to_json()
    return found

  loaded, prompt = load(tiny_folder), one("prompt_tuning")
  settings = serving_settings.Settings(platforms=["cpu"], steps=2)
  served = serving_programs.servable(answer.session(loaded, prompt), settings)
  found = Made(loaded, prompt, one("prefix_tuning_decoder"), served)
  lowered = functools.cache(lambda: lower(served))
  lower = serving_export.lower
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(serving_export, "lower", lambda made: lowered())
    yield found


def stepped(prompt, step):
  return dataclasses.replace(prompt, card={**prompt.card, "step": step})


def save_product(made, folder, step):
  stepped(made.prompt, step).save(folder)


def save_backbone(made, folder, step):
  vocabulary = made.loaded.vocabulary_path if step == 1 else None
  t5_files.save(folder, made.loaded.backbone, made.scaled(step), vocabulary)


def save_peft(made, folder, step):
  prompts.write_peft(folder, made.prompt, f"base/{step}")


def save_prefix(made, folder, step):
  prompts.write_peft(folder, made.prefix, f"base/{step}")


def save_t5x(made, folder, step, write=t5x.write_legacy):
  write(folder, made.loaded.backbone, made.scaled(step), 7)


def save_huggingface(made, folder, step):
  huggingface.write(folder, made.loaded.backbone, made.scaled(step))


def save_sharded(made, folder, step):
  # More files at first than later.
  huggingface.write(
    folder, made.loaded.backbone, made.scaled(step), shard_bytes=60_000 << 2 * step
  )


def save_stablehlo(made, folder, step):
  card = {**made.served.card, "step": step}
  serving_export.write(folder, dataclasses.replace(made.served, card=card))


@dataclasses.dataclass(frozen=True)
class Writer:
  """save: (made, folder, step from 1 on), other numbers each step.
  names: of files that are always written. below: where in the folder they are.
  """

  save: Callable[[Made, Any, int], None]
  names: tuple[str, ...]
  below: str = ""


CHECKPOINT = "checkpoint_7"
WRITERS = {
  "product": Writer(save_product, (product.CARD, product.TENSORS)),
  "backbone": Writer(save_backbone, ("config.json", t5_files.WEIGHTS)),
  "peft": Writer(save_peft, (peft.CONFIG, peft.WEIGHTS)),
  "prefix": Writer(save_prefix, (peft.CONFIG, peft.WEIGHTS)),
  "t5x": Writer(save_t5x, ("checkpoint",), CHECKPOINT),
  "t5x_orbax": Writer(
    functools.partial(save_t5x, write=t5x.write_orbax),
    ("_CHECKPOINT_METADATA", "state/_METADATA"),
    CHECKPOINT,
  ),
  "huggingface": Writer(save_huggingface, ("config.json", "model.safetensors")),
  "sharded": Writer(save_sharded, ("config.json",)),
  "stablehlo": Writer(save_stablehlo, ("card.json", "weights.safetensors")),
}
every = pytest.mark.parametrize("name", WRITERS)


def held(folder):
  """Name -> content, but for what says which files are ours."""
  return {
    name: (folder / name).read_bytes()
    for name in owned.names_of(folder)
    if not pathlib.PurePosixPath(name).name.endswith(owned.MANIFEST)
  }


def names(folder):
  """Of what is held, sorted; those that Orbax draws anew each time are all one."""
  return sorted({re.sub("[0-9a-f]{32}$", "drawn", name) for name in held(folder)})


@every
def test_what_else_is_there_stays_and_nothing_old_does(made, tmp_path, name):
  """In the folder where the user is, with a mask of its own."""
  writer, alone = WRITERS[name], tmp_path / "alone"
  mine, here = {}, tmp_path / "here"
  for path in ("results.csv", "notes/a.txt", "seen.txt"):
    place = here / (writer.below if path == "seen.txt" else "") / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("kept")
    mine[place.relative_to(here).as_posix()] = b"kept"
  before, mask = os.getcwd(), os.umask(0o027)
  os.chdir(here)
  try:
    writer.save(made, ".", 1)
    assert set(held(here)) > {*mine}
    writer.save(made, ".", 2)
  finally:
    os.chdir(before)
    os.umask(mask)
  writer.save(made, alone, 2)
  assert names(here) == sorted([*names(alone), *mine])
  if writer.below:
    ours = owned.listed_beside(here / writer.below)
    assert {*held(here / writer.below)} == {*ours, "seen.txt"}
  assert {name: data for name, data in held(here).items() if name in mine} == mine
  for path in held(here).keys() - mine.keys():
    assert (here / path).stat().st_mode & 0o777 == 0o640, path


@every
def test_what_is_not_ours_is_refused(made, tmp_path, name):
  writer = WRITERS[name]
  for taken in writer.names:
    place = tmp_path / "thesis" / writer.below / taken
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("{}")
    with pytest.raises(ValueError, match="which was not written by this library"):
      writer.save(made, tmp_path / "thesis", 1)
    assert held(tmp_path) == {place.relative_to(tmp_path).as_posix(): b"{}"}
    place.unlink()
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="which was not written by this library"):
      writer.save(made, tmp_path / "thesis", 1)
    place.unlink()
  (tmp_path / "file").write_text("mine")
  for folder in (tmp_path / "file", tmp_path / "file" / "x"):
    with pytest.raises(ValueError, match="is a file. Name another folder"):
      writer.save(made, folder, 1)
  assert held(tmp_path) == {"file": b"mine"}


class Killed(BaseException):
  """The process ends here."""


def killed(patch, at):
  """Lets so many renames happen, and tidies nothing up; returns what is counted."""
  count = [0]

  def step(real, *args):
    if count[0] == at:
      raise Killed
    count[0] += 1
    return real(*args)

  moves = {n: functools.partial(step, getattr(os, n)) for n in ("rename", "replace")}
  for module in (folders, files):
    patch.setattr(module, "os", types.SimpleNamespace(**{**vars(os), **moves}))
  tidy = {**vars(folders.shutil), "rmtree": lambda *args, **rest: None}
  patch.setattr(folders, "shutil", types.SimpleNamespace(**tidy))
  return count


@every
def test_a_kill_leaves_the_old_or_the_new(made, tmp_path, monkeypatch, name):
  writer = WRITERS[name]
  versions = []
  for step in (1, 2):
    writer.save(made, tmp_path / f"version_{step}", step)
    version = names(tmp_path / f"version_{step}" / writer.below)
    versions.append([path for path in version if not path.endswith("drawn")])
  writer.save(made, tmp_path / "count", 1)
  with monkeypatch.context() as patch:
    count = killed(patch, None)
    writer.save(made, tmp_path / "count", 2)
  assert count[0] > 1
  for at in sorted({1, count[0] // 2} if writer.below else {*range(count[0])}):
    place = tmp_path / f"killed_{at}"
    writer.save(made, place, 1)
    with monkeypatch.context() as patch, pytest.raises(Killed):
      killed(patch, at)
      writer.save(made, place, 2)
    folder = place / writer.below
    found = [
      all(folders.current(folder, n).exists() for n in version) for version in versions
    ]
    assert any(found), at
    for path in writer.names:
      assert folders.current(folder, path).is_file()
    # Ours still, and whole again.
    writer.save(made, place, 2)
    files.sweep(place)
    files.sweep(folder)
    assert names(place) == names(tmp_path / "version_2")


@pytest.mark.parametrize("name", [n for n in WRITERS if n not in ("t5x", "t5x_orbax")])
def test_remote_folders_too(made, bucket, name):
  """T5X's own libraries write to local folders."""
  writer, place = WRITERS[name], f"{test_remote_runs.REMOTE}/{name}"
  (bucket / name).mkdir()
  (bucket / name / "mine").write_text("kept")
  writer.save(made, place, 1)
  writer.save(made, place, 2)
  writer.save(made, bucket / "alone" / name, 2)
  assert names(bucket / name) == sorted(["mine", *names(bucket / "alone" / name)])
  (bucket / name / writer.names[0]).write_text("{}")
  with pytest.raises(ValueError, match="which was not written by this library"):
    writer.save(made, place, 1)
  assert (bucket / name / writer.names[0]).read_text() == "{}"


def test_a_place_is_refused_before_work(tmp_path, tiny_folder, monkeypatch):
  """Before a model of any size is loaded."""
  monkeypatch.setattr(export, "load", None)
  monkeypatch.setattr(export.api, "load_model", None)
  monkeypatch.setattr(prompts, "load", None)
  (tmp_path / "file").write_text("mine")
  (tmp_path / "card.json").write_text("{}")
  for to in export.FORMATS:
    given = {"prompt": tiny_folder, "checkpoint": tiny_folder}
    wrong = [tmp_path / "file" / "x", tmp_path / ("x" * 300)]
    wrong += [tmp_path / "a\0b" / "c", tmp_path / "a\ud800b" / "c"]
    wrong += [] if to == "numpy" else [tmp_path / "file"]
    wrong += [tmp_path] if to in ("stablehlo", "savedmodel") else []
    for output in wrong:
      with pytest.raises(ValueError, match="is a file|not written|cannot be"):
        export.export(to, str(output), **given)
  assert held(tmp_path) == {"file": b"mine", "card.json": b"{}"}


def test_a_saved_model(made, tmp_path):
  pytest.importorskip("tensorflow")
  (tmp_path / "mine").write_text("kept")
  export.SERVING["savedmodel"](tmp_path, made.served)
  found = held(tmp_path)
  assert found["mine"] == b"kept" and {"saved_model.pb", "card.json"} < found.keys()
  (tmp_path / "saved_model.pb").write_bytes(b"edited")
  with pytest.raises(ValueError, match="'saved_model.pb', which was not written"):
    export.SERVING["savedmodel"](tmp_path, made.served)


def test_a_backbone_of_a_killed_write_is_read(tiny_folder, tmp_path):
  """Whole, but not yet in its place."""
  shutil.copytree(tiny_folder, tmp_path / folders.NEW)
  assert load(str(tmp_path)).fingerprint == load(tiny_folder).fingerprint

"""Where backbones lie: the Hub's cache, remote folders, and what is no backbone."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
import tensorflow as tf
import tensorstore as ts
from etils import epath
from etils.epath import gpath
from etils.epath import testing as epath_testing

from prompt_tuning.backbones.t5 import files
from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.backbones.t5.config import T5Config
from prompt_tuning.core.context import Spec
from prompt_tuning.interop import hub, huggingface, pickles, places, source, stores, t5x
from prompt_tuning.interop import load as loading
from prompt_tuning.interop.load import load, open_source

GOLDEN = pathlib.Path(__file__).parent / "goldens" / "hugging_face" / "t5_1_1"
CONFIG = T5Config(40, 8, 2, 4, 12, 1, 2)
IDS = (
  "google/t5-v1_1-small",
  "google/flan-t5-base",
  "google/mt5-small",
  "google/byt5-small",
)


@pytest.fixture(scope="module")
def weights():
  rng = np.random.default_rng(0)
  shapes = T5(CONFIG).shapes()
  return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


def library(monkeypatch, repository):
  """A huggingface_hub that copies what is asked for out of a folder."""
  asked = []

  def snapshot_download(name, revision=None, allow_patterns=()):
    asked.append((name, revision, tuple(allow_patterns)))
    if isinstance(repository, Exception):
      raise repository
    folder = repository.with_name("cache")
    folder.mkdir(exist_ok=True)
    for pattern in allow_patterns:
      for path in repository.glob(pattern):
        shutil.copy(path, folder)
    return str(folder)

  fake = types.SimpleNamespace(snapshot_download=snapshot_download)
  monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
  return asked


def test_ids_of_the_hub(tmp_path, monkeypatch):
  assert all(hub.is_id(name) for name in IDS)
  for text in ("mini", "/a/b", "./a/b", "a/b/c", "../b", "gs://a/b", "a/", "a b/c"):
    assert not hub.is_id(text)
  # What lies here comes first.
  monkeypatch.chdir(tmp_path)
  (tmp_path / "google" / "t5-v1_1-small").mkdir(parents=True)
  assert places.find(IDS[0]) == pathlib.Path(IDS[0])


@pytest.mark.parametrize("name", [IDS[0], f"{IDS[1]}@refs/pr/2"])
def test_only_files_that_are_read_are_fetched(name, tmp_path, monkeypatch):
  repository = tmp_path / "repository"
  shutil.copytree(GOLDEN, repository)
  for other in ("tf_model.h5", "pytorch_model.bin", "code.py", "spiece.model"):
    (repository / other).write_text("x")
  asked = library(monkeypatch, repository)
  opened = open_source(places.find(name))
  assert files.fingerprint(source.load(opened)[1]) == files.fingerprint(
    source.load(huggingface.open_source(GOLDEN))[1]
  )
  owner, _, revision = name.partition("@")
  assert [(n, r) for n, r, _ in asked] == [(owner, revision or None)]
  fetched = sorted(p.name for p in (tmp_path / "cache").iterdir())
  assert fetched == ["config.json", "model.safetensors", "spiece.model"]
  assert opened.vocabulary == str(tmp_path / "cache" / "spiece.model")


def test_a_revision_with_pickles_alone(tmp_path, monkeypatch):
  repository = tmp_path / "repository"
  repository.mkdir()
  shutil.copy(GOLDEN / "config.json", repository)
  (repository / "pytorch_model.bin").write_text("x")
  asked = library(monkeypatch, repository)
  monkeypatch.setattr(pickles, "available", lambda: False)
  with pytest.raises(ValueError, match="holds no safetensors.*torch 2.6.*@REVISION"):
    places.find(IDS[0])
  assert not (tmp_path / "cache" / "pytorch_model.bin").exists()
  monkeypatch.setattr(pickles, "available", lambda: True)
  assert (places.find(IDS[0]) / "pytorch_model.bin").is_file() and len(asked) == 3
  (repository / "pytorch_model.bin").unlink()
  (tmp_path / "cache" / "pytorch_model.bin").unlink()
  with pytest.raises(ValueError, match="neither safetensors nor pytorch_model.bin"):
    places.find(IDS[0])


def test_the_hub_without_library_or_network(monkeypatch):
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  with pytest.raises(ValueError, match="is no folder here. .* install huggingface_hub"):
    load(IDS[0])
  library(monkeypatch, ConnectionError("no network\nmore"))
  with pytest.raises(
    ValueError, match="no folder here, .* cannot fetch it: no network$"
  ):
    load(IDS[0])


def test_the_real_library_finds_its_cache(tmp_path):
  pytest.importorskip("huggingface_hub")
  root = tmp_path / "hub" / "models--google--t5-v1_1-small"
  shutil.copytree(GOLDEN, root / "snapshots" / ("a" * 40))
  (root / "refs").mkdir()
  (root / "refs" / "main").write_text("a" * 40)
  command = (
    "from prompt_tuning.interop import places\n"
    "for name in ('google/t5-v1_1-small', 'google/mt5-small'):\n"
    "  try: print(places.find(name))\n"
    "  except ValueError as error: print(error)\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", command],
    env={
      **os.environ,
      "HF_HOME": str(tmp_path),
      "HF_HUB_OFFLINE": "1",
      "PYTHONPATH": str(pathlib.Path(__file__).parent.parent),
    },
    capture_output=True,
    text=True,
    check=True,
  )
  first, second = done.stdout.splitlines()
  assert first == str(root / "snapshots" / ("a" * 40))
  assert second.startswith("'google/mt5-small' is no folder here, and huggingface_hub")


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  """A local folder, and what makes it gs://bucket/ for epath and for tensorstore."""
  root = tmp_path / "bucket"
  root.mkdir()
  # Otherwise epath goes round what it mocks; the file type stays TensorFlow's.
  monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)

  def local(path):
    return str(path).replace("gs://bucket", str(root))

  def mapped(plain, path):
    return plain(local(path))

  def opened(plain, path, mode):
    return tf.io.gfile.GFile(local(path), mode)

  def glob(plain, path):
    return [str(p).replace(str(root), "gs://bucket") for p in plain(local(path))]

  plain_url = stores.url
  monkeypatch.setattr(stores, "url", lambda p: plain_url(pathlib.Path(local(p))))
  mocks = {"exists": mapped, "isdir": mapped, "listdir": mapped}
  return root, epath_testing.mock_epath(open=opened, glob=glob, **mocks)


@pytest.mark.parametrize("kind", ["own", "hugging_face", "t5x", "orbax"])
def test_remote_folders(kind, bucket, weights, vocabulary_file):
  root, mounted = bucket
  if kind == "own":
    params = jax.tree.map(jax.numpy.asarray, weights)
    files.save(root / "model", T5(CONFIG), params, vocabulary_file)
  elif kind == "hugging_face":
    folder = root / "model"
    huggingface.write(folder, T5(CONFIG), weights, vocabulary_file, shard_bytes=1000)
  else:
    writer = t5x.write_legacy if kind == "t5x" else t5x.write_orbax
    writer(root / "model", T5(CONFIG), weights, step=7)
    shutil.copy(vocabulary_file, root / "model" / "spiece.model")
  with mounted:
    opened = open_source(places.find("gs://bucket/model"))
    assert opened.vocabulary == "gs://bucket/model/spiece.model"
    assert opened.config == CONFIG
    _, params = source.load(opened)
    assert files.fingerprint(params) == files.fingerprint(weights)
    with pytest.raises(ValueError, match="'gs://bucket/none', which does not exist"):
      open_source(places.find("gs://bucket/none"))


def test_a_remote_tokenizer_json(bucket, vocabulary_file):
  pytest.importorskip("tokenizers")
  import tokenizer_tools

  root, mounted = bucket
  saved(root / "model", 8101, None)
  tokenizer_tools.t5(root / "model", vocabulary_file, added=["<new>"])
  with mounted:
    loaded = load("gs://bucket/model")
    assert loaded.vocabulary_path == "gs://bucket/model/tokenizer.json"
    assert loaded.vocabulary.encode("<new>") == [8100]
    huggingface.write(
      root / "again", loaded.backbone, loaded.params, "gs://bucket/model/tokenizer.json"
    )
  names = {path.name for path in (root / "again").iterdir()}
  assert {"tokenizer.json", "tokenizer_config.json"} < names


def test_remote_errors_and_unknown_places(bucket):
  """Remote file systems have error types of their own."""

  def refused(plain, path, *rest):
    raise tf.errors.PermissionDeniedError(None, None, "no rights\nmore")

  with epath_testing.mock_epath(open=refused, exists=refused, isdir=refused):
    with pytest.raises(ValueError, match="'gs://bucket/x' cannot be read: no rights$"):
      open_source(places.find("gs://bucket/x"))
  with pytest.raises(ValueError, match="'ftp://x/y' is of a kind that is not known"):
    load("ftp://x/y")


def test_tensorstore_gets_the_bucket_itself():
  url = stores.url(epath.Path("gs://bucket/model/checkpoint_3") / "target.x")
  assert url == "gs://bucket/model/checkpoint_3/target.x/"
  spec = ts.KvStore.Spec(url).to_json()
  assert spec == {
    "driver": "gcs",
    "bucket": "bucket",
    "path": url[len("gs://bucket/") :],
  }
  assert stores.url(pathlib.Path("/a/b")) == "file:///a/b/"


def folder_with(**contents):
  def make(folder):
    folder.mkdir()
    for name, content in contents.items():
      (folder / name.replace("__", ".")).write_text(content)

  return make


NO_BACKBONES = {
  "which does not exist": lambda folder: None,
  "a file, not a folder": lambda folder: folder.write_text("x"),
  "says model_type 'vit'": folder_with(config__json='{"model_type": "vit"}'),
  "says model_type 'gptj'": folder_with(config__json='{"model_type": "gptj"}'),
  "says model_type 'umt5'": folder_with(config__json='{"model_type": "umt5"}'),
  "is not a folder that this library saved": folder_with(config__json='{"a": 1}'),
  "config.json' cannot be read": folder_with(config__json="{"),
  "not an object": folder_with(config__json="[]"),
  "is a prompt: give it as": folder_with(adapter_config__json="{}"),
  "checkpoint of Mesh TensorFlow": folder_with(
    checkpoint='model_checkpoint_path: "model.ckpt-3"'
  ),
  "a write left unfinished": lambda folder: (
    folder / "checkpoint_40.orbax-checkpoint-tmp"
  ).mkdir(parents=True),
  "no config.json and no checkpoint": folder_with(README__md="x"),
  "is damaged: it is cut short": folder_with(checkpoint=""),
}


@pytest.mark.parametrize("words", NO_BACKBONES)
def test_what_is_no_backbone(tmp_path, words):
  NO_BACKBONES[words](tmp_path / "model")
  with pytest.raises(ValueError, match=words):
    load(str(tmp_path / "model"))


def saved(folder, rows, vocabulary_file):
  config = T5Config(rows, 8, 2, 4, 12, 1, 1)
  params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), T5(config).shapes())
  huggingface.write(folder, T5(config), params, vocabulary_file)


def test_vocabularies_and_rows(vocabulary_file):
  """8000 pieces; with 100 sentinels, 8100 ids."""
  for rows, ids in {8192: 8100, 8100: 8100, 8355: 8100, 8050: 8000}.items():
    found = loading.beside(vocabulary_file, rows)
    loading.check_vocabulary(Spec(1, rows), found, "x")
    assert found.vocab_size == ids
  for rows in (7999, 8356):
    found = loading.beside(vocabulary_file, rows)
    with pytest.raises(ValueError, match=f"8100 ids, but the backbone 'x' has {rows}"):
      loading.check_vocabulary(Spec(1, rows), found, "x")


def test_a_damaged_vocabulary(tmp_path):
  saved(tmp_path / "model", 40, None)
  (tmp_path / "model" / "spiece.model").write_bytes(b"no model")
  with pytest.raises(ValueError, match="spiece.model' is no SentencePiece model"):
    load(str(tmp_path / "model"))


def test_bytes_need_no_vocabulary_file(tmp_path):
  saved(tmp_path / "byt5", 384, None)
  assert load(str(tmp_path / "byt5")).vocabulary.vocab_size == 384
  tokenizer = tmp_path / "byt5" / "tokenizer_config.json"
  tokenizer.write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))
  assert open_source(tmp_path / "byt5").vocabulary == "bytes"

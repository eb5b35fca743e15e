"""Backbones of other libraries, read and written; damaged files get one typed error."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.backbones.t5.config import T5Config
from prompt_tuning.core.model import PromptedModel, features
from prompt_tuning.core.trainable import flatten
from prompt_tuning.interop import huggingface, shards, source, t5x
from prompt_tuning.interop.load import load
from prompt_tuning.interop.t5_family import open_source as open_foreign

GOLDENS = pathlib.Path(__file__).parent / "goldens" / "hugging_face"
FOLDERS = ("t5_1_0", "t5_1_1", "t5_shared_unscaled", "mt5_sharded")
SHARED = pathlib.Path(__file__).parent.parent.parent / "shared" / "testdata"
CONFIG = T5Config(40, 8, 2, 4, 12, 1, 2)
upstream = pytest.mark.skipif(
  not SHARED.is_dir(), reason="upstream's checkpoints are not here"
)


@pytest.fixture(scope="module")
def weights():
  """Random weights of `CONFIG`."""
  rng = np.random.default_rng(0)
  shapes = T5(CONFIG).shapes()
  return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


def same(left, right):
  left, right = flatten(left), flatten(right)
  assert set(left) == set(right)
  for name, value in left.items():
    assert left[name].dtype == right[name].dtype, name
    np.testing.assert_array_equal(value, right[name], err_msg=name)


@pytest.mark.parametrize("name", FOLDERS)
def test_logits_of_a_hugging_face_folder(name):
  stored = np.load(GOLDENS / "logits.npz")
  backbone, params = source.load(open_foreign(GOLDENS / name))
  batch = features(stored["inputs"], stored["targets"], {})
  logits = PromptedModel(backbone).logits({"backbone": params}, batch)
  np.testing.assert_allclose(logits, stored[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FOLDERS)
def test_written_for_hugging_face_and_read_again(name, tmp_path):
  backbone, params = source.load(open_foreign(GOLDENS / name))
  huggingface.write(tmp_path / "out", backbone, params)
  again, loaded = source.load(huggingface.open_source(tmp_path / "out"))
  assert again.config == backbone.config
  same(loaded, params)
  # Names and shapes are those that transformers wrote, but for unscaled logits from
  # the shared table, which get a kernel of their own.
  ours = shards.tensors(tmp_path / "out")
  theirs = shards.tensors(GOLDENS / name)
  extra = set() if name == "t5_1_0" else {"lm_head.weight"}
  assert {n: x.shape for n, x in ours.items() if n not in extra} == {
    n: x.shape for n, x in theirs.items() if "embed_tokens" not in n
  }


def test_bfloat16_loses_at_most_its_own_rounding(tmp_path, weights):
  huggingface.write(tmp_path / "out", T5(CONFIG), weights, dtype=jnp.bfloat16)
  _, loaded = source.load(huggingface.open_source(tmp_path / "out"))
  for name, value in flatten(weights).items():
    found = flatten(loaded)[name]
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, value.astype(jnp.bfloat16), err_msg=name)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_t5x_legacy_round_trip(tmp_path, weights, dtype):
  params = jax.tree.map(lambda x: x.astype(dtype), weights)
  t5x.write_legacy(tmp_path / "model", T5(CONFIG), params, step=3)
  t5x.write_legacy(tmp_path / "model", T5(CONFIG), params, step=12)
  (tmp_path / "model" / "checkpoint_40.tmp-123").mkdir()
  for path in ("model", "model/checkpoint_12", "model/checkpoint_12/checkpoint"):
    found = open_foreign(tmp_path / path)
    assert (found.step, found.config) == (12, CONFIG)
    same(source.load(found)[1], params)


def test_t5x_orbax_round_trip(tmp_path, weights):
  for step in (3, 12):
    t5x.write_orbax(tmp_path / "model", T5(CONFIG), weights, step)
  found = open_foreign(tmp_path / "model")
  assert (found.step, found.config) == (12, CONFIG)
  same(source.load(found)[1], weights)


def test_scanned_backbones_read_the_same_files(tmp_path, weights):
  scanned = T5(T5Config(40, 8, 2, 4, 12, 1, 2, scan_layers=True))
  t5x.write_legacy(tmp_path / "model", T5(CONFIG), weights)
  backbone, params = source.load(open_foreign(tmp_path / "model"), scanned)
  assert backbone is scanned
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, scanned.shapes())


@upstream
def test_upstream_checkpoints_hold_the_same_weights():
  legacy = t5x.open_source(t5x.find(SHARED / "t5x_tiny_checkpoint"), 8)
  orbax = t5x.open_source(t5x.find(SHARED / "t5x_tiny_orbax"), 8)
  assert (len(legacy.arrays), legacy.step, len(orbax.arrays), orbax.step) == (
    52, 3, 52, 7,
  )  # fmt: skip
  assert (
    legacy.config
    == orbax.config
    == T5Config(32128, 4, 2, 2, 8, 2, 2, relative_buckets=4, relative_max_distance=8)
  )
  same(source.load(legacy)[1], source.load(orbax)[1])
  assert not legacy.prompts
  assert {n: x.shape for n, x in orbax.prompts.items()} == {
    "encoder/prompt/prompt/prompt": (100, 4)
  }
  assert orbax.prompts["encoder/prompt/prompt/prompt"].read().std() > 0


@upstream
def test_load_takes_an_upstream_checkpoint_and_a_bound_vocabulary(vocabulary_file):
  from prompt_tuning.data import vocabularies

  checkpoint = str(SHARED / "t5x_tiny_checkpoint")
  with pytest.raises(ValueError, match="holds no spiece.model and no token"):
    load(checkpoint)
  with pytest.raises(ValueError, match="8100 ids, but the backbone .* has 32128 rows"):
    load(checkpoint, vocabulary=vocabularies.sentencepiece(vocabulary_file))
  # 32000 pieces and 100 sentinels; the rows above them are padding.
  path = SHARED / "vocab" / "t5_sentencepiece.model"
  vocabulary = vocabularies.sentencepiece(str(path))
  loaded = load(checkpoint, vocabulary=vocabulary)
  assert loaded.backbone.config.num_encoder_layers == 2
  big = T5(T5Config(32128, 8, 2, 2, 8, 2, 2, relative_buckets=4))
  with pytest.raises(ValueError, match="emb_dim: 8 is bound, 4 is in the folder"):
    load(checkpoint, backbone=big, vocabulary=vocabulary)


def broken(folder, file, change):
  path = folder / file
  if change is None:
    path.unlink()
  else:
    path.write_bytes(change(path.read_bytes()))


def half(data):
  return data[: len(data) // 2]


HUGGING_FACE = [
  ("model.safetensors", half, "damaged"),
  ("model.safetensors", None, "neither model.safetensors"),
  ("config.json", lambda d: d.replace(b'"t5"', b'"bart"'), "says model_type 'bart'"),
  (
    "config.json",
    lambda d: d.replace(b'"d_ff"', b'"x"'),
    "of one T5: d_ff: None in",
  ),
  (
    "config.json",
    lambda d: d.replace(b"gated-gelu", b"swish"),
    "knows 'relu', 'gated-gelu'",
  ),
]


@pytest.mark.parametrize(("file", "change", "words"), HUGGING_FACE)
def test_damaged_hugging_face_folders(tmp_path, file, change, words):
  folder = tmp_path / "model"
  shutil.copytree(GOLDENS / "t5_1_1", folder)
  broken(folder, file, change)
  with pytest.raises(ValueError, match=words):
    source.load(huggingface.open_source(folder))


def test_a_missing_shard_and_a_missing_weight(tmp_path):
  folder = tmp_path / "model"
  shutil.copytree(GOLDENS / "mt5_sharded", folder)
  index = json.loads((folder / shards.INDEX).read_text())
  index["weight_map"]["more.weight"] = next(iter(index["weight_map"].values()))
  (folder / shards.INDEX).write_text(json.dumps(index))
  with pytest.raises(ValueError, match="lacks weights that .*index.json names: more"):
    huggingface.open_source(folder)
  sorted(folder.glob("*.safetensors"))[0].unlink()
  with pytest.raises(ValueError, match="The shard .* is missing"):
    huggingface.open_source(folder)


KERNEL = "target.encoder.layers_0.mlp.wo.kernel"
T5X = [
  ("checkpoint", half, "cut short, or no msgpack"),
  ("checkpoint", lambda d: d.replace(b"version", b"sersion"), "version 0"),
  (f"{KERNEL}/0.0", half, f"{KERNEL}.* is damaged"),
  (f"{KERNEL}/0.0", None, "NOT_FOUND.*0.0.* is missing"),
  (f"{KERNEL}/.zarray", half, f"{KERNEL}.*cannot be opened.*Invalid JSON"),
  (f"{KERNEL}/.zarray", lambda d: d.replace(b"gzip", b"none"), f"{KERNEL}.* cannot be"),
  (f"{KERNEL}/.zarray", lambda d: d.replace(b"12", b"24"), "has other shapes"),
]


@pytest.mark.parametrize(("file", "change", "words"), T5X)
def test_damaged_t5x_checkpoints(tmp_path, weights, file, change, words):
  folder = t5x.write_legacy(tmp_path / "model", T5(CONFIG), weights)
  broken(folder, file, change)
  with pytest.raises(ValueError, match=words):
    source.load(t5x.open_source(folder))

"""The library's own backbone folder: round trips, scanned layers, refusals."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import flax as safetensors_flax

from prompt_tuning.backbones.t5 import files
from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.backbones.t5.config import T5Config
from prompt_tuning.core.trainable import flatten
from prompt_tuning.interop import own, source
from prompt_tuning.interop.load import load

CONFIG = T5Config(32, 8, 2, 4, 16, 2, 1)


def read(folder, expected=None):
  return source.load(own.open_source(folder), expected)


@pytest.fixture(scope="module")
def weights():
  return jax.jit(T5(CONFIG).init)(jax.random.key(0))


def test_round_trip_is_exact(tmp_path, weights):
  files.save(tmp_path / "t5", T5(CONFIG), weights)
  backbone, params = read(tmp_path / "t5")
  assert backbone.config == CONFIG
  for name, value in flatten(weights).items():
    np.testing.assert_array_equal(value, flatten(params)[name])
  assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_scanned_layers_load_from_the_same_folder(tmp_path, weights):
  files.save(tmp_path / "t5", T5(CONFIG), weights)
  scanned = T5(dataclasses.replace(CONFIG, scan_layers=True))
  _, params = read(tmp_path / "t5", scanned)
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(
    jnp.shape, jax.eval_shape(scanned.init, jax.random.key(0))
  )
  assert files.fingerprint(params) == files.fingerprint(weights)
  files.save(tmp_path / "again", scanned, params)
  _, unrolled = read(tmp_path / "again")
  for name, value in flatten(weights).items():
    np.testing.assert_array_equal(value, flatten(unrolled)[name])


def test_fingerprint_knows_weights_and_not_their_dtype(weights):
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), weights)
  assert files.fingerprint(half) == files.fingerprint(weights)
  other = jax.tree.map(lambda x: x + 1, weights)
  assert files.fingerprint(other) != files.fingerprint(weights)


def test_missing_unknown_and_misshapen_weights_are_all_named(tmp_path, weights):
  folder = tmp_path / "t5"
  files.save(folder, T5(CONFIG), weights)
  flat = dict(flatten(weights))
  del flat["encoder/encoder_norm/scale"]
  flat["encoder/extra/kernel"] = jnp.zeros((2,))
  flat["decoder/decoder_norm/scale"] = jnp.zeros((3,))
  safetensors_flax.save_file(flat, str(folder / "model.safetensors"))
  with pytest.raises(ValueError) as error:
    read(folder)
  for name in ("encoder_norm/scale", "encoder/extra/kernel", "decoder_norm/scale (3,)"):
    assert name in str(error.value)


def test_another_architecture_is_refused(tmp_path, weights):
  files.save(tmp_path / "t5", T5(CONFIG), weights)
  other = T5(dataclasses.replace(CONFIG, mlp_dim=32))
  with pytest.raises(ValueError, match="mlp_dim: 32 is bound, 16 is in the folder"):
    read(tmp_path / "t5", other)


def test_other_folders_are_refused(tmp_path):
  with pytest.raises(ValueError, match="no config.json"):
    load(str(tmp_path))
  (tmp_path / "config.json").write_text(json.dumps({"emb_dim": 8}))
  with pytest.raises(ValueError, match="not a folder that this library saved"):
    load(str(tmp_path))


def test_vocabulary_with_more_ids_than_rows_is_refused(
  tmp_path, weights, vocabulary_file
):
  files.save(tmp_path / "t5", T5(CONFIG), weights, vocabulary_file)
  with pytest.raises(ValueError, match="8100 ids, but the backbone .* has 32 rows"):
    load(str(tmp_path / "t5"))

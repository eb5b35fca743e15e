"""Arrays are read by slices, into their place, and once."""

import contextlib
import dataclasses
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from prompt_tuning.backbones.t5 import files
from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.backbones.t5.config import T5Config
from prompt_tuning.core.trainable import flatten
from prompt_tuning.interop import (
  huggingface,
  lazy,
  own,
  source,
  t5x,
)

CONFIG = T5Config(40, 8, 2, 4, 12, 1, 2)
FORMATS = ("own", "hugging_face", "t5x", "orbax")
NAMES = ("encoder/layers_0/mlp/wo/kernel", "token_embedder/embedding")
CUTS = [
  (slice(None), slice(None)),
  (slice(3, 7), slice(None)),
  (slice(None), slice(2, 5)),
  (slice(1, 8), slice(4, 6)),
  (slice(5, 5), slice(0, 1)),
]


@pytest.fixture(scope="module")
def weights():
  rng = np.random.default_rng(0)
  shapes = T5(CONFIG).shapes()
  return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


def write(kind, folder, params):
  """A folder of one format, opened."""
  if kind == "own":
    params = jax.tree.map(jnp.asarray, params)
    files.save(folder, T5(CONFIG), params)
    return own.open_source(folder)
  if kind == "hugging_face":
    huggingface.write(folder, T5(CONFIG), params, shard_bytes=1000)
    return huggingface.open_source(folder)
  writer = t5x.write_legacy if kind == "t5x" else t5x.write_orbax
  return t5x.open_source(writer(folder, T5(CONFIG), params))


@pytest.fixture(scope="module", params=FORMATS)
def opened(request, tmp_path_factory, weights):
  return write(request.param, tmp_path_factory.mktemp("x") / "model", weights)


@pytest.mark.parametrize("cut", CUTS)
def test_slices_are_those_of_the_whole(opened, weights, cut):
  for name in NAMES:
    whole = flatten(weights)[name]
    np.testing.assert_array_equal(opened.arrays[name].read(cut), whole[cut])
    rounded = opened.arrays[name].read(cut, jnp.bfloat16)
    assert rounded.dtype == jnp.bfloat16
    np.testing.assert_array_equal(rounded, whole[cut].astype(jnp.bfloat16))


def test_an_index_must_fit(opened):
  array = opened.arrays["token_embedder/embedding"]
  for index in ((slice(None),), (slice(0, 4, 2), slice(None))):
    with pytest.raises(ValueError, match="2 slices of step 1"):
      array.read(index)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_weights_of_every_format(opened, weights, scan, dtype):
  config = dataclasses.replace(CONFIG, scan_layers=scan, weights_dtype=dtype)
  backbone, params = source.load(opened, T5(config))
  wanted = flatten(weights)
  if scan:
    shapes = flatten(backbone.shapes())
    assert {n: x.shape for n, x in flatten(params).items()} == {
      n: x.shape for n, x in shapes.items()
    }
    layers = [wanted[f"decoder/layers_{i}/mlp/wo/kernel"] for i in range(2)]
    wanted = {**wanted, "decoder/layers/mlp/wo/kernel": np.stack(layers)}
  for name, value in flatten(params).items():
    if name in wanted:
      np.testing.assert_array_equal(value, wanted[name].astype(value.dtype))
      assert value.dtype == (dtype or "float32")


@pytest.fixture
def counted(monkeypatch):
  """Sizes of what is read from files."""
  sizes, plain = [], lazy.open_bytes

  class Counting:
    def __init__(self, file):
      self.file, self.seek = file, file.seek

    def read(self, size):
      sizes.append(size)
      return self.file.read(size)

  @contextlib.contextmanager
  def open_bytes(path):
    with plain(path) as file:
      yield Counting(file)

  monkeypatch.setattr(lazy, "open_bytes", open_bytes)
  return sizes


@pytest.mark.parametrize("kind", ["own", "hugging_face"])
def test_no_more_is_read_than_the_slice(kind, tmp_path, weights, counted):
  opened = write(kind, tmp_path / "model", weights)
  array = opened.arrays["decoder/layers_1/mlp/wi_0/kernel"]
  for cut in ((slice(None), slice(3, 6)), (slice(2, 4), slice(None))):
    counted.clear()
    assert array.read(cut).nbytes == sum(counted)
  counted.clear()
  scanned = T5(dataclasses.replace(CONFIG, scan_layers=True))
  _, params = source.load(opened, scanned)
  assert sum(counted) == sum(x.nbytes for x in flatten(params).values())


# Four devices, each pair holding the same half of the kernels.
SHARDED = """
import sys, jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from prompt_tuning.backbones.t5 import files
from prompt_tuning.core.trainable import flatten
from prompt_tuning.interop import huggingface, lazy, source
import pathlib
found = huggingface.open_source(pathlib.Path(sys.argv[1]))
over = Mesh(np.array(jax.devices()).reshape(2, 2), ("data", "model"))
place = NamedSharding(over, PartitionSpec(None, "model"))
asked = []
def watched(array):
  def into(target, index):
    asked.append(target.nbytes)
    array.into(target, index)
  return lazy.Lazy(array.shape, array.dtype, into)
found.arrays.update({name: watched(array) for name, array in found.arrays.items()})
def rule(backbone):
  shapes = flatten(backbone.shapes())
  return {n: place for n, x in shapes.items() if len(x.shape) == 2 and "bias" not in n}
_, params = source.load(found, shardings=rule)
flat = flatten(params)
assert sum(asked) == sum(x.nbytes for x in flat.values())
kernel = flat["encoder/layers_0/mlp/wi_0/kernel"]
assert kernel.sharding == place
assert {s.data.shape for s in kernel.addressable_shards} == {(8, 6)}
print(files.fingerprint(params))
"""


def test_devices_read_their_slices_and_share_them(tmp_path, weights):
  huggingface.write(tmp_path / "model", T5(CONFIG), weights)
  environment = {
    **os.environ,
    "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    "PYTHONPATH": str(pathlib.Path(__file__).parent.parent),
  }
  done = subprocess.run(
    [sys.executable, "-c", SHARDED, str(tmp_path / "model")],
    env=environment,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  assert done.stdout.split() == [files.fingerprint(weights)]


def test_shardings_of_unknown_weights_are_refused(opened):
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  with pytest.raises(ValueError, match="no weights of this backbone: encoder/x"):
    source.load(opened, shardings=lambda backbone: {"encoder/x": place})


def test_types_to_keep_weights_in(opened):
  assert T5Config(40, 8, 2, 4, 12, 1, 2, weights_dtype=jnp.bfloat16) == (
    dataclasses.replace(CONFIG, weights_dtype="bfloat16")
  )
  for dtype in ("int4", np.float64, "nonsense"):
    with pytest.raises(ValueError, match="`T5Config.weights_dtype` must be one of"):
      source.load(opened, dtype=dtype)


def test_what_is_no_float_is_refused(tmp_path, weights):
  for dtype, words in ((np.int8, "norm/scale int8"), (np.float64, "which `dtype`")):
    flat = {k: np.ascontiguousarray(v) for k, v in flatten(weights).items()}
    flat["encoder/encoder_norm/scale"] = np.ones(8, dtype)
    files.save(tmp_path / "t5", T5(CONFIG), jax.tree.map(jnp.asarray, weights))
    path = tmp_path / "t5" / "model.safetensors"
    safetensors_numpy.save_file(flat, str(path))
    with pytest.raises(ValueError, match=words):
      source.load(own.open_source(tmp_path / "t5"))
  _, params = source.load(own.open_source(tmp_path / "t5"), dtype="float32")
  assert params["encoder"]["encoder_norm"]["scale"].dtype == jnp.float32


def test_float16_is_widened_without_loss(tmp_path, weights):
  halves = jax.tree.map(lambda x: jnp.asarray(x, jnp.float16), weights)
  files.save(tmp_path / "t5", T5(CONFIG), halves)
  _, params = source.load(own.open_source(tmp_path / "t5"))
  for name, value in flatten(params).items():
    assert value.dtype == jnp.float32
    np.testing.assert_array_equal(value, np.asarray(flatten(halves)[name]))

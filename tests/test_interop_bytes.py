"""Safetensors and msgpack, read byte by byte as their libraries read them."""

import json
import struct

import jax
import jax.numpy as jnp
import ml_dtypes
import msgpack
import numpy as np
import pytest
from safetensors import flax as safetensors_flax

from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.backbones.t5.config import T5Config
from prompt_tuning.core.trainable import flatten
from prompt_tuning.interop import lazy, msgpack_places, t5x, tensor_files

CONFIG = T5Config(40, 8, 2, 4, 12, 1, 2)


def test_safetensors_are_read_as_their_library_reads_them(tmp_path):
  rng = np.random.default_rng(0)
  tensors = {
    "a": rng.normal(size=(3, 5)).astype(ml_dtypes.bfloat16),
    "b": rng.normal(size=(7,)).astype(np.float16),
    "c": np.float32(3).reshape(()),
    "d": rng.integers(0, 9, (2, 3, 4)),
    "e": np.zeros((0, 4), np.float32),
  }
  path = tmp_path / "x.safetensors"
  safetensors_flax.save_file({k: jnp.asarray(v) for k, v in tensors.items()}, path)
  found = tensor_files.tensors(path)
  theirs = safetensors_flax.load_file(path)
  assert set(found) == set(theirs)
  for name, value in theirs.items():
    assert found[name].dtype == value.dtype
    np.testing.assert_array_equal(found[name].read(), np.asarray(value))


def header(content, data=b""):
  text = json.dumps(content).encode()
  return struct.pack("<Q", len(text)) + text + data


def entry(shape, span, dtype="F32"):
  return {"dtype": dtype, "shape": shape, "data_offsets": span}


BAD = {
  "says that its header takes 9,223,372": struct.pack("<Q", 1 << 63) + b"{}",
  "says that its header takes": b"abc",
  "no JSON object": header([]),
  "take 4000000000000 bytes|does not take": header({"a": entry([10**12], [0, 8])}),
  "follow the header": header({"a": entry([4], [0, 16])}, b"1234"),
  "overlap or leave a gap": header(
    {"a": entry([1], [0, 4]), "b": entry([1], [2, 6])}, b"12345678"
  ),
  "of type 'F8_E5M2'": header({"a": entry([4], [0, 4], "F8_E5M2")}, b"1234"),
  "has the shape": header({"a": entry([-1, -4], [0, 16])}, bytes(16)),
}


@pytest.mark.parametrize("words", BAD)
def test_bad_safetensors(tmp_path, words):
  path = tmp_path / "x.safetensors"
  path.write_bytes(BAD[words])
  with pytest.raises(lazy.UnreadableError, match=words):
    tensor_files.tensors(path)


def test_msgpack_is_read_as_its_library_reads_it(tmp_path):
  value = {
    "small": [0, -1, 127, -32, 128, -129, 1 << 40, -(1 << 40), 1.5, None, True, False],
    "names": {"x" * n: "y" * n for n in (1, 31, 32, 255, 256)},
    "lists": [[], {}, list(range(40)), {str(i): i for i in range(20)}],
  }
  path = tmp_path / "x"
  path.write_bytes(msgpack.packb(value))
  with path.open("rb") as file:
    assert msgpack_places.places(file) == value
  for size in (1, 2, 4, 8, 16, 3, 300, 70000):
    for code, packed in ((None, bytes(size)), (5, msgpack.ExtType(5, bytes(size)))):
      path.write_bytes(msgpack.packb(["before", packed, "after"]))
      with path.open("rb") as file:
        before, span, after = msgpack_places.places(file)
      assert (before, after) == ("before", "after")
      assert (span.code, span.length) == (code, size)
      assert path.read_bytes()[span.start :][:size] == bytes(size)


@pytest.mark.parametrize(
  "data",
  [
    b"",
    b"\xc1",
    b"\xdd\xff\xff\xff\xff",
    b"\x91" * 200,
    b"\xdb\x00\xff\xff\xff" + b"x",
  ],
)
def test_bad_msgpack(tmp_path, data):
  path = tmp_path / "x"
  path.write_bytes(data)
  with path.open("rb") as file, pytest.raises(lazy.UnreadableError):
    msgpack_places.places(file)


def test_large_arrays_of_flax_are_joined(tmp_path):
  """Flax cuts what is above a gibibyte in pieces; so small here."""
  rng = np.random.default_rng(0)
  shapes = T5(CONFIG).shapes()
  weights = jax.tree.map(lambda x: rng.normal(size=x.shape), shapes)
  value = flatten(weights)["token_embedder/embedding"]
  folder = t5x.write_legacy(tmp_path, T5(CONFIG), weights)
  tree = msgpack.unpackb((folder / "checkpoint").read_bytes(), ext_hook=msgpack.ExtType)
  pieces = np.split(value.reshape(-1), [100, 130])
  tree["optimizer"]["target"]["token_embedder"]["embedding"] = {
    "__msgpack_chunked_array__": True,
    "shape": {str(i): n for i, n in enumerate(value.shape)},
    "chunks": {
      str(i): msgpack.ExtType(1, msgpack.packb((p.shape, p.dtype.name, p.tobytes())))
      for i, p in enumerate(pieces)
    },
  }
  (folder / "checkpoint").write_bytes(msgpack.packb(tree))
  array = t5x.open_source(folder).arrays["token_embedder/embedding"]
  np.testing.assert_array_equal(array.read(), value)
  cut = (slice(11, 20), slice(3, 5))
  np.testing.assert_array_equal(array.read(cut), value[cut])

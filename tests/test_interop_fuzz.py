"""Readers of files from elsewhere, on files changed at random.

PROMPT_TUNING_FUZZ=500 python -m pytest tests/test_interop_fuzz.py -s

runs 500 changes of each format; the default is small. PROMPT_TUNING_FUZZ_SEED draws
other changes.
"""

import os
import pathlib
import resource
import shutil

import fuzz_tools
import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest

from prompt_tuning.backbones.t5 import files
from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.backbones.t5.config import T5Config
from prompt_tuning.interop import prompts, shards, source, t5x
from prompt_tuning.interop.load import open_source

GOLDENS = pathlib.Path(__file__).parent / "goldens"
COUNT = int(os.environ.get("PROMPT_TUNING_FUZZ", "40"))
SEED = int(os.environ.get("PROMPT_TUNING_FUZZ_SEED", "0"))
CONFIG = T5Config(40, 8, 2, 4, 12, 1, 1)
VECTORS = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)


def weights():
  rng = np.random.default_rng(0)
  shapes = T5(CONFIG).shapes()
  return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


def own(folder):
  files.save(folder, T5(CONFIG), jax.tree.map(jnp.asarray, weights()))
  return folder


def golden(name):
  def make(folder):
    shutil.copytree(GOLDENS / name, folder)
    return folder

  return make


def legacy(folder):
  """Zarr folders, arrays in place, and one of them in pieces."""
  place = t5x.write_legacy(folder, T5(CONFIG), weights(), step=3)
  file = place / "checkpoint"
  tree = msgpack.unpackb(file.read_bytes(), ext_hook=msgpack.ExtType)
  target = tree["optimizer"]["target"]
  scale = np.ones(8, np.float32)
  target["encoder"]["encoder_norm"]["scale"] = in_place(scale)
  target["decoder"]["decoder_norm"]["scale"] = {
    "__msgpack_chunked_array__": True,
    "shape": {"0": 8},
    "chunks": {"0": in_place(scale[:5]), "1": in_place(scale[5:])},
  }
  file.write_bytes(msgpack.packb(tree))
  return folder


def in_place(value):
  data = msgpack.packb((value.shape, value.dtype.name, value.tobytes()))
  return msgpack.ExtType(1, data)


def orbax(folder):
  t5x.write_orbax(folder, T5(CONFIG), weights())
  return folder


def pickled(folder):
  torch = pytest.importorskip("torch")
  shutil.copytree(GOLDENS / "hugging_face" / "t5_1_0", folder)
  tensors = {n: torch.from_numpy(x.read()) for n, x in shards.tensors(folder).items()}
  torch.save(tensors, folder / shards.PICKLED)
  (folder / shards.SINGLE).unlink()
  return folder


def array(path):
  with path.open("wb") as file:
    np.save(file, VECTORS)
  return path


def product(folder):
  prompts.load(array(folder.with_name("x.npy"))).save(folder)
  return folder


def backbone(folder):
  opened = open_source(folder)
  for prompt in opened.prompts.values():
    prompt.read()
  source.load(opened)


CASES = {
  "own": (own, backbone),
  "hugging_face": (golden("hugging_face/t5_1_1"), backbone),
  "sharded": (golden("hugging_face/mt5_sharded"), backbone),
  "pickled": (pickled, backbone),
  "t5x": (legacy, backbone),
  "orbax": (orbax, backbone),
  "numpy": (array, prompts.load),
  "peft": (golden("peft/prompt_tuning"), prompts.load),
  "prompt": (product, prompts.load),
}


@pytest.mark.parametrize("kind", CASES)
def test_damaged_files_give_the_typed_error_or_load(kind, tmp_path):
  make, read = CASES[kind]
  folder = make(tmp_path / kind)
  read(folder)
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  refused, accepted = fuzz_tools.fuzz(folder, read, COUNT, SEED)
  grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
  print(f"{kind}: {refused} refused, {accepted} read, {grown >> 10} MiB more")
  assert refused > COUNT // 4
  assert grown < 500 << 10

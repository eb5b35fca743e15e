"""Folders of toys: config.json and model.safetensors."""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import numpy as safetensors_numpy

from prompt_tuning.core.ids import Ids
from prompt_tuning.core.trainable import flatten, unflatten
from toy_family.backbone import Toy

NAME, FORMAT, MODEL_TYPES = "toy", "prompt_tuning/toy", ("toy",)
LOOKED_FOR = "of a toy, a folder of the tests"


@dataclasses.dataclass(frozen=True)
class Opened:
  """A folder that was recognised."""

  path: Any
  backbone: Toy
  arrays: Any
  vocabulary: None = None

  @property
  def spec(self):
    return self.backbone.spec


def save(folder: pathlib.Path, backbone: Toy, params: Any) -> None:
  folder.mkdir()
  fields = {"format": FORMAT, **backbone.architecture}
  (folder / "config.json").write_text(json.dumps(fields))
  arrays = {name: np.asarray(value) for name, value in flatten(params).items()}
  safetensors_numpy.save_file(arrays, folder / "model.safetensors")


def open_source(place, expected=None):
  path = place / "config.json"
  fields = json.loads(path.read_text()) if path.is_file() else {}
  if fields.pop("format", None) != FORMAT:
    return None
  backbone = Toy(**{**fields, "ids": Ids(*fields["ids"])})
  arrays = safetensors_numpy.load_file(place / "model.safetensors")
  return Opened(place, backbone, arrays)


def load(opened, expected, shardings, dtype):
  return opened.backbone, unflatten(jax.tree.map(jnp.asarray, opened.arrays))


def fingerprint(params):
  return digest(flatten(params))


def digest(arrays):
  raw = (np.asarray(value).tobytes() for _, value in sorted(arrays.items()))
  return hashlib.sha256(b"".join(raw)).hexdigest()[:16]

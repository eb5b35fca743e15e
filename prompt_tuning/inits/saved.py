"""Rows loaded from a file: an array saved by numpy, or a prompt of this library."""

import io
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import numpy as safetensors_numpy

from prompt_tuning.core import files
from prompt_tuning.core.prompt import Initializer


def rows(path: str, tensor: str | None = None) -> Initializer:
  """The array of a `.npy` file, or a tensor of a `.safetensors` file.

  Args:
    path: the file, or a `prompt/` folder.
    tensor: its name inside a safetensors file; may be left out where there is one.

  Raises:
    ValueError: if the file is missing, holds pickled objects, or its shape is not the
      one asked for (leading axes of length 1 aside).
  """

  def draw(key: Any, shape: tuple[int, ...], spec: Any) -> jax.Array:
    del key, spec
    found = _read(files.at(path), tensor)
    if _plain(found.shape) != _plain(shape):
      raise ValueError(
        f"{path!r} holds an array of shape {found.shape}, but {tuple(shape)} is asked "
        "for. Set PROMPT_LENGTH to its length, and use the backbone of its width."
      )
    return jnp.asarray(found, jnp.float32).reshape(shape)

  return draw


def stacked(paths: Sequence[str], tensor: str | None = None) -> Initializer:
  """One array a file, one behind the other [n ...]; see `rows`.

  Raises:
    ValueError: also if there are more or fewer files than arrays asked for.
  """

  def draw(key: Any, shape: tuple[int, ...], spec: Any) -> jax.Array:
    if len(paths) != shape[0]:
      raise ValueError(
        f"SOURCE_FILES names {len(paths)} files, but SOURCES is {shape[0]}. Make both "
        "agree."
      )
    found = [rows(path, tensor)(key, shape[1:], spec) for path in paths]
    return jnp.stack(found) if found else jnp.zeros(shape)

  return draw


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
  shape = tuple(shape)
  while len(shape) > 1 and shape[0] == 1:
    shape = shape[1:]
  return shape


def _read(path: Any, tensor: str | None) -> np.ndarray:
  if path.is_dir():
    path = path / "prompt.safetensors"
  if not path.is_file():
    raise ValueError(f"There is no file {str(path)!r} to start from.")
  try:
    if path.suffix == ".npy":
      return np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    tensors = safetensors_numpy.load(path.read_bytes())
  except Exception as error:  # a damaged file raises whatever its reader raises
    raise ValueError(f"{str(path)!r} cannot be read as an array: {error}.") from error
  if tensor is None and len(tensors) == 1:
    return next(iter(tensors.values()))
  if tensor not in tensors:
    raise ValueError(
      f"{str(path)!r} holds {sorted(tensors)}; name one of them as `tensor`, "
      f"got {tensor!r}."
    )
  return tensors[tensor]

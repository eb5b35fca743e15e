"""pytorch_model.bin, through torch's loader of weights alone.

A pickle may name code to run. torch.load(weights_only=True) builds tensors and plain
containers only; releases before 2.6 could be led round that (CVE-2025-32434), so they
are refused. Nothing else in this library unpickles.
"""

import contextlib
import math
import pathlib
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from prompt_tuning.interop.lazy import Flat, Lazy, UnreadableError, flat

OLDEST = (2, 6)
_FIX = (
  "Install torch 2.6 or newer (pip install 'prompt-tuning[torch]'), or save the model "
  "again as safetensors"
)
# A file's pages stay in memory once read; it is opened anew after so many bytes.
_REOPEN_BYTES = 64 << 20


def available() -> bool:
  """Whether a torch is installed whose loader is safe."""
  try:
    return _version(_torch()) >= OLDEST
  except (ImportError, ValueError):
    return False


def tensors(path: Any) -> dict[str, Lazy]:
  """Name -> array of a state dict that torch saved.

  Files of torch before 1.6 have no place to map and are held whole while they are read.

  Raises:
    UnreadableError: if torch is missing or too old, or if the file is damaged or holds
      anything but named tensors.
  """
  try:
    torch = _torch()
  except ImportError as error:
    raise UnreadableError(f"{str(path)!r} is a pickle. {_FIX}.") from error
  if _version(torch) < OLDEST:
    raise UnreadableError(
      f"{str(path)!r} is a pickle, and the weights-only loader of torch "
      f"{torch.__version__} is not safe. {_FIX}."
    )
  if not isinstance(path, pathlib.Path):
    raise UnreadableError(f"{str(path)!r} is a pickle; copy it to this machine first.")
  file = _File(torch, path)
  return {name: file.lazy(name, value) for name, value in file.content().items()}


def _torch() -> Any:
  import torch

  return torch


def _version(torch: Any) -> tuple[int, ...]:
  return tuple(int(part) for part in str(torch.__version__).split(".")[:2])


class _File:
  """One file, opened again now and then so that what was read leaves memory."""

  def __init__(self, torch: Any, path: pathlib.Path) -> None:
    self.torch, self.path = torch, path
    self.loaded: dict[str, Any] | None = None
    self.used = 0
    self.mapped = True

  def content(self) -> dict[str, Any]:
    if self.loaded is None or (self.mapped and self.used > _REOPEN_BYTES):
      self.loaded, self.used = None, 0
      self.loaded = self._load()
    return self.loaded

  def _load(self) -> dict[str, Any]:
    settings = {"map_location": "cpu", "weights_only": True}
    try:
      # Files of torch before 1.6 are no archives.
      with self.path.open("rb") as file:
        self.mapped = file.read(2) == b"PK"
      found = self.torch.load(str(self.path), mmap=self.mapped, **settings)
    except Exception as error:  # pickles raise anything
      first = str(error).strip().splitlines() or [type(error).__name__]
      raise UnreadableError(
        f"{str(self.path)!r} is damaged, or holds more than weights: {first[0]}"
      ) from error
    plain = isinstance(found, dict) and all(
      isinstance(name, str)
      and isinstance(value, self.torch.Tensor)
      and value.layout == self.torch.strided
      and value.device.type == "cpu"
      for name, value in found.items()
    )
    if not plain:
      raise UnreadableError(f"{str(self.path)!r} holds no table of named tensors.")
    return dict(found)

  def lazy(self, name: str, value: Any) -> Lazy:
    shape, dtype = tuple(value.shape), self._dtype(name, value)

    @contextlib.contextmanager
    def opened() -> Iterator[Flat]:
      tensor = self.content()[name].detach()
      if tuple(tensor.shape) != shape:
        raise UnreadableError(f"{str(self.path)!r} has changed while it was read.")
      self.used += math.prod(shape) * dtype.itemsize
      # A tensor that is stored transposed is copied once.
      values = tensor.contiguous().view(-1)

      def read(start: int, stop: int) -> np.ndarray:
        part = values[start:stop]
        if dtype == jnp.bfloat16:
          return part.view(self.torch.int16).numpy().view(jnp.bfloat16)
        return part.numpy()

      yield read

    return flat(shape, dtype, opened)

  def _dtype(self, name: str, value: Any) -> np.dtype:
    kind = str(value.dtype).removeprefix("torch.")
    try:
      return np.dtype(jnp.bfloat16 if kind == "bfloat16" else kind)
    except TypeError as error:
      raise UnreadableError(f"{str(self.path)!r} holds {name} of {kind}.") from error

"""Arrays that stand in files: shapes now, numbers later, slice by slice.

A reader fills memory that its caller owns, in blocks, so that no array is held twice:
transposing, stacking and casting happen on the way in.
"""

import contextlib
import dataclasses
import math
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from prompt_tuning.core import files

Index = tuple[slice, ...]
# Gives array[start:stop] of an array whose axes are laid flat.
Flat = Callable[[int, int], np.ndarray]

# What one piece of reading takes at most, unless a row is longer: little enough here to
# be transposed in the processor's cache, and worth a request elsewhere.
BLOCK_BYTES = 1 << 20
REMOTE_BLOCK_BYTES = 16 << 20
# JAX on a CPU takes over memory that starts at a multiple of this, without a copy.
_ALIGN = 64


class UnreadableError(ValueError):
  """A file is damaged, incomplete, or not what it says it is."""


@dataclasses.dataclass(frozen=True)
class Lazy:
  """An array that has not been read.

  Attributes:
    shape, dtype: of the array, as stored.
    into: `into(target, index)` fills `target`, of whatever strides and float type, with
      array[index]; the index has one slice an axis, with bounds and the step 1.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  into: Callable[[np.ndarray, Index], None]

  def read(self, index: Index | None = None, dtype: Any = None) -> np.ndarray:
    """array[index] in memory of its own; only that part of the file is read.

    Args:
      index: a slice of step 1 for each axis; None for all.
      dtype: to cast to, block by block; None keeps the stored one.
    """
    index = bounds(index, self.shape)
    shape = tuple(part.stop - part.start for part in index)
    target = empty(shape, np.dtype(self.dtype if dtype is None else dtype))
    if target.size:
      self.into(target, index)
    return target


def bounds(index: Index | None, shape: Sequence[int]) -> Index:
  """The index with its bounds spelled out.

  Raises:
    ValueError: for another number of axes, or a step.
  """
  index = (slice(None),) * len(shape) if index is None else tuple(index)
  if len(index) != len(shape) or any(part.step not in (None, 1) for part in index):
    raise ValueError(
      f"`index` must be {len(shape)} slices of step 1 for an array {tuple(shape)}, got "
      f"{index}."
    )
  found = [part.indices(size) for part, size in zip(index, shape, strict=True)]
  return tuple(slice(start, max(start, stop)) for start, stop, _ in found)


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """Memory for an array, aligned as JAX likes it."""
  size = math.prod(shape) * dtype.itemsize
  try:
    if size > _memory():
      # Linux would promise it, and end the process when it is used.
      raise MemoryError
    raw = np.empty(size + _ALIGN, np.uint8)
  except (MemoryError, OverflowError, ValueError) as error:
    raise UnreadableError(
      f"An array {shape} of {dtype} takes {size:,} bytes, which this machine has not."
    ) from error
  start = -raw.ctypes.data % _ALIGN
  return raw[start : start + size].view(dtype).reshape(shape)


def _memory() -> float:
  """Bytes of this machine, where it says."""
  try:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  except (AttributeError, OSError, ValueError):
    return math.inf


def assign(target: np.ndarray, block: np.ndarray) -> None:
  """target[...] = block, cast if need be."""
  if target.dtype == block.dtype and target.dtype.itemsize in (1, 2, 4, 8):
    # numpy copies types that are not its own, such as bfloat16, one by one.
    bits = np.dtype(f"u{target.dtype.itemsize}")
    target, block = target.view(bits), block.view(bits)
  target[...] = block


def flat(
  shape: tuple[int, ...],
  dtype: np.dtype,
  opened: Callable[[], contextlib.AbstractContextManager[Flat]],
  remote: bool = False,
) -> Lazy:
  """An array in C order over something that gives ranges of its elements.

  Args:
    shape, dtype: of the array.
    opened: gives the function that reads elements, for one use of `into`.
    remote: whether a read has latency; then a slice of a matrix's columns is cut out of
      whole rows, and otherwise read row by row, so that nothing else is read.
  """
  width = math.prod(shape[1:])
  most = REMOTE_BLOCK_BYTES if remote else BLOCK_BYTES

  def into(target: np.ndarray, index: Index) -> None:
    with opened() as read:
      if not shape:
        assign(target, read(0, 1).reshape(()))
        return
      rows, cut = index[0], index[1:]
      if not remote and len(shape) == 2 and cut[0] != slice(0, width):
        for row in range(rows.start, rows.stop):
          begin = row * width
          piece = read(begin + cut[0].start, begin + cut[0].stop)
          assign(target[row - rows.start], piece)
        return
      step = max(1, most // (width * dtype.itemsize))
      for start in range(rows.start, rows.stop, step):
        stop = min(start + step, rows.stop)
        block = read(start * width, stop * width).reshape(stop - start, *shape[1:])
        place = slice(start - rows.start, stop - rows.start)
        assign(target[place], block[(slice(None), *cut)])

  return Lazy(shape, dtype, into)


def in_file(path: Any, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> Lazy:
  """An array in C order, little-endian, that starts at a byte of a file.

  Args:
    path: `pathlib.Path` or `epath.Path`. offset: of its first byte.
    shape, dtype: of the array.
  """

  @contextlib.contextmanager
  def opened() -> Iterator[Flat]:
    with open_bytes(path) as file:

      def read(start: int, stop: int) -> np.ndarray:
        file.seek(offset + start * dtype.itemsize)
        wanted = (stop - start) * dtype.itemsize
        data = file.read(wanted)
        if len(data) != wanted:
          raise UnreadableError(f"{str(path)!r} is damaged: it ends within an array.")
        return np.frombuffer(data, dtype)

      yield read

  return flat(shape, dtype, opened, remote=files.is_remote(path))


@contextlib.contextmanager
def open_bytes(path: Any) -> Iterator[Any]:
  """A file to seek and read in, local or not; failures are `UnreadableError`."""
  check_regular(path)
  with readable(path), path.open("rb") as file:
    yield file


def check_regular(path: Any) -> None:
  """Refuses a local path that is no file: opening a pipe or a device may not end.

  Raises:
    UnreadableError: if it is none, or not there.
  """
  if files.is_remote(path):
    return
  try:
    mode = os.stat(path).st_mode
  except (OSError, ValueError) as error:
    words = error.strerror if isinstance(error, OSError) else error
    raise UnreadableError(f"{str(path)!r} cannot be read: {words}.") from error
  if not stat.S_ISREG(mode):
    kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
    raise UnreadableError(f"{str(path)!r} is {kind}, not a regular file.")


@contextlib.contextmanager
def readable(path: Any) -> Iterator[None]:
  """Gives what goes wrong at a place the one type of error.

  Remote file systems raise types of their own, so there every one counts.
  """
  try:
    yield
  except ValueError:
    raise
  except Exception as error:
    if not isinstance(error, OSError) and not files.is_remote(path):
      raise
    first = str(error).strip().splitlines() or [type(error).__name__]
    raise UnreadableError(f"{str(path)!r} cannot be read: {first[0]}") from error


def held(value: np.ndarray) -> Lazy:
  """An array that is in memory already."""
  return Lazy(value.shape, value.dtype, lambda out, index: assign(out, value[index]))


def transposed(lazy: Lazy) -> Lazy:
  """The array with its axes in reverse order."""

  def into(target: np.ndarray, index: Index) -> None:
    lazy.into(target.T, index[::-1])

  return Lazy(lazy.shape[::-1], lazy.dtype, into)


def stacked(layers: Sequence[Lazy]) -> Lazy:
  """Arrays of one shape along a new first axis; each is read into its place."""

  def into(target: np.ndarray, index: Index) -> None:
    for place, layer in enumerate(layers[index[0]]):
      layer.into(target[place], index[1:])

  dtype = jnp.result_type(*(layer.dtype for layer in layers))
  return Lazy((len(layers), *layers[0].shape), np.dtype(dtype), into)


def picked(lazy: Lazy, axis: int, number: int) -> Lazy:
  """The array at one place of an axis, without that axis."""

  def into(target: np.ndarray, index: Index) -> None:
    one = slice(number, number + 1)
    lazy.into(np.expand_dims(target, axis), (*index[:axis], one, *index[axis:]))

  return Lazy(lazy.shape[:axis] + lazy.shape[axis + 1 :], lazy.dtype, into)


def cut(lazy: Lazy, axis: int, start: int, stop: int) -> Lazy:
  """The part of the array from `start` to `stop` of an axis."""

  def into(target: np.ndarray, index: Index) -> None:
    own = slice(index[axis].start + start, index[axis].stop + start)
    lazy.into(target, (*index[:axis], own, *index[axis + 1 :]))

  shape = (*lazy.shape[:axis], stop - start, *lazy.shape[axis + 1 :])
  return Lazy(shape, lazy.dtype, into)


def reshaped(lazy: Lazy, shape: tuple[int, ...]) -> Lazy:
  """The array in another shape of as many elements; read whole, then cut."""

  def into(target: np.ndarray, index: Index) -> None:
    assign(target, lazy.read().reshape(shape)[index])

  return Lazy(shape, lazy.dtype, into)


def viewed(lazy: Lazy, dtype: Any) -> Lazy:
  """The same bits as another type of the same size."""
  dtype = np.dtype(dtype)

  def into(target: np.ndarray, index: Index) -> None:
    assign(target, lazy.read(index).view(dtype))

  return Lazy(lazy.shape, dtype, into)


def joined(parts: Sequence[Lazy], shape: tuple[int, ...]) -> Lazy:
  """Flat arrays, one behind the other, as one array of `shape`."""
  starts = np.cumsum([0, *(part.shape[0] for part in parts)])

  def read(start: int, stop: int) -> np.ndarray:
    found = []
    for part, first in zip(parts, starts[:-1].tolist(), strict=True):
      begin, end = max(start - first, 0), min(stop - first, part.shape[0])
      if begin < end:
        found.append(part.read((slice(begin, end),)))
    return np.concatenate(found)

  return flat(shape, parts[0].dtype, lambda: contextlib.nullcontext(read))

"""Arrays of T5X checkpoints: zarr, plain or inside OCDBT, through tensorstore.

tensorstore reads only the chunks that a slice touches, and speaks gs:// itself.
"""

import ctypes
import functools
import itertools
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorstore as ts

from prompt_tuning.interop.lazy import Index, Lazy, UnreadableError

# From so many chunks on, they are counted before they are read.
_MANY_CHUNKS = 4096
# Of numbers that are all the same: gzip reaches 1032, others some ten thousand.
_BEST_COMPRESSION = 100_000


def url(path: Any) -> str:
  """How tensorstore names a folder, local (`pathlib`) or remote (`epath`)."""
  text = str(path)
  return f"{text if '://' in text else f'file://{path.absolute()}'}/"


def arrays(folders: Mapping[str, Any], driver: str = "zarr") -> dict[str, Lazy]:
  """Name -> array, of zarr folders; their metadata are read at once.

  Args:
    folders: name -> key-value store of tensorstore.
    driver: "zarr", or "zarr3".

  Raises:
    UnreadableError: naming the first that cannot be opened.
  """
  started = {
    name: ts.open(
      {"driver": driver, "kvstore": store, "fill_missing_data_reads": False},
      read=True,
      open=True,
    )
    for name, store in folders.items()
  }
  return {name: _lazy(name, opening) for name, opening in started.items()}


def _lazy(name: str, opening: Any) -> Lazy:
  try:
    array = opening.result()
    shape, dtype = tuple(array.shape), np.dtype(array.dtype.numpy_dtype)
  except Exception as error:  # tensorstore raises ValueError, OSError, RuntimeError
    raise UnreadableError(f"{name} cannot be opened: {first_line(error)}.") from error

  def into(target: np.ndarray, index: Index) -> None:
    try:
      _check_claims(array)
      for group in _groups(array, index):
        if target.dtype == dtype:
          here = [
            ts.array(target[_within(block, index)]).write(array[block])
            for block in group
          ]
          for done in here:
            done.result()
        else:
          for block, read in [(block, array[block].read()) for block in group]:
            target[_within(block, index)] = read.result()
        _return_memory()
    except Exception as error:
      raise UnreadableError(f"{name} is damaged: {first_line(error)}.") from error

  return Lazy(shape, dtype, into)


def _groups(array: Any, index: Index) -> Iterator[list[Index]]:
  """The blocks of `index` that lie in one chunk each, some at a time.

  A chunk is unpacked aside before it is copied: those of one group take at most half of
  what the slice takes, unless one alone takes more.
  """
  chunk = array.chunk_layout.read_chunk.shape or ()
  ranges = []
  for part, width in zip(index, chunk, strict=True):
    starts = range(part.start - part.start % width, part.stop, width)
    ranges.append(
      [slice(max(part.start, at), min(part.stop, at + width)) for at in starts]
    )
  blocks = list(itertools.product(*ranges))
  size = math.prod(part.stop - part.start for part in index)
  most = max(1, size // (2 * max(1, math.prod(chunk))))
  for first in range(0, len(blocks), most):
    yield blocks[first : first + most]


@functools.cache
def _trim() -> Callable[[int], Any]:
  """glibc's `malloc_trim`, or nothing where there is none."""
  try:
    return ctypes.CDLL(None).malloc_trim
  except (AttributeError, OSError, TypeError):
    return lambda _: None


def _return_memory() -> None:
  """Hands the room of unpacked chunks back to the system.

  glibc would keep tens of megabytes of it for each of tensorstore's threads, on top of
  the weights that are kept.
  """
  _trim()(0)


def _within(block: Index, index: Index) -> tuple[Any, ...]:
  """Where a block of an array lies in the slice `index` of it."""
  places = [
    slice(mine.start - whole.start, mine.stop - whole.start)
    for mine, whole in zip(block, index, strict=True)
  ]
  return (*places, ...)  # With no axes still a view.


def _check_claims(array: Any) -> None:
  """Refuses metadata that promise more than is stored.

  tensorstore would make room for it first, and end the process where there is none.
  """
  # An array of no axes has no chunk shape.
  chunk = array.chunk_layout.read_chunk.shape or ()
  if any(part > size for part, size in zip(chunk, array.shape, strict=True)):
    raise ValueError(f"chunks {tuple(chunk)} of an array {tuple(array.shape)}")
  counts = [-(-size // part) for size, part in zip(array.shape, chunk, strict=True)]
  if math.prod(counts) > _MANY_CHUNKS:
    stored = len(array.kvstore.list().result())
    if stored < math.prod(counts):
      raise ValueError(
        f"{math.prod(counts):,} chunks are claimed, {stored:,} are there"
      )
  store = array.kvstore.spec().to_json()
  if store["driver"] == "file":
    files = pathlib.Path(store["path"]).iterdir()
    stored = sum(file.stat().st_size for file in files if file.is_file())
    claimed = math.prod(array.shape) * array.dtype.numpy_dtype.itemsize
    if claimed > stored * _BEST_COMPRESSION:
      raise ValueError(f"{claimed:,} bytes are claimed, {stored:,} are stored")


def first_line(error: Exception) -> str:
  """tensorstore's own words, without its trail of source files."""
  lines = str(error).split(" [")[0].splitlines()
  return lines[0][:300] if lines else type(error).__name__

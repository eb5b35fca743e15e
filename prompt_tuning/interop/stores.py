"""Arrays of T5X checkpoints: zarr, plain or inside OCDBT, through tensorstore.

tensorstore reads only the chunks that a slice touches, and speaks gs:// itself.
"""

import math
import pathlib
from collections.abc import Mapping
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
      if target.dtype == dtype:
        ts.array(target)[...].write(array[index]).result()
      else:
        target[...] = array[index].read().result()
    except Exception as error:
      raise UnreadableError(f"{name} is damaged: {first_line(error)}.") from error

  return Lazy(shape, dtype, into)


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

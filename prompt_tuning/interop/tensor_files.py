"""Safetensors files, read where they stand: local or remote, slice by slice.

The safetensors library maps a whole file, or copies each tensor twice, and opens local
files alone; the format (eight bytes of length, a JSON header, the bytes) is read here.
"""

import math
import reprlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from prompt_tuning.interop import untrusted
from prompt_tuning.interop.lazy import Lazy, UnreadableError, in_file, open_bytes

TYPES = {
  "F64": np.float64,
  "F32": np.float32,
  "F16": np.float16,
  "BF16": jnp.bfloat16,
  "I64": np.int64,
  "I32": np.int32,
  "I16": np.int16,
  "I8": np.int8,
  "U8": np.uint8,
  "BOOL": np.bool_,
}
# The safetensors library writes and reads no longer header.
HEADER_BYTES = 100_000_000
# Of numpy.
MOST_AXES = 32


def tensors(path: Any) -> dict[str, Lazy]:
  """Name -> array of a safetensors file; only its header is read.

  Args:
    path: `pathlib.Path` or `epath.Path`.

  Raises:
    UnreadableError: if the header is no header, or does not fit the file's size.
  """
  try:
    return _tensors(path)
  except UnreadableError:
    raise
  except (OSError, ValueError, OverflowError) as error:
    raise UnreadableError(f"{str(path)!r} is damaged: {error}.") from error


def _tensors(path: Any) -> dict[str, Lazy]:
  with open_bytes(path) as file:
    size = file.seek(0, 2) or file.tell()
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, HEADER_BYTES):
      raise ValueError(
        f"it says that its header takes {length:,} bytes, and it has {size:,} in all"
      )
    header = untrusted.parse(file.read(length), str(path))
  if not isinstance(header, dict):
    raise ValueError("its header is no JSON object")
  header.pop("__metadata__", None)
  start, found, spans = 8 + length, {}, []
  for name, entry in header.items():
    if not isinstance(entry, dict):
      raise ValueError(f"its header says of {name} {reprlib.repr(entry)}")
    shape = _sizes(entry.get("shape"), name)
    dtype = _type(entry.get("dtype"), name)
    span = _sizes(entry.get("data_offsets"), name)
    if len(span) != 2:
      raise ValueError(f"{name} has the place {list(span)}")
    begin, end = span
    if end - begin != math.prod(shape) * dtype.itemsize:
      raise ValueError(f"{name} {shape} does not take {end - begin} bytes")
    spans.append((begin, end))
    found[name] = in_file(path, start + begin, shape, dtype)
  _check_spans(spans, size - start)
  return found


def _sizes(stated: Any, name: str) -> tuple[int, ...]:
  whole = isinstance(stated, list) and len(stated) <= MOST_AXES
  if not whole or not all(type(size) is int and size >= 0 for size in stated):
    raise ValueError(f"{name} has the shape or place {reprlib.repr(stated)}")
  return tuple(stated)


def _type(stated: Any, name: str) -> np.dtype:
  if not isinstance(stated, str) or stated not in TYPES:
    known = ", ".join(TYPES)
    raise ValueError(f"{name} is of type {reprlib.repr(stated)}; known are {known}")
  return np.dtype(TYPES[stated])


def _check_spans(spans: list[tuple[int, int]], size: int) -> None:
  """The arrays lie side by side and fill the file."""
  place = 0
  for begin, end in sorted(spans):
    if begin != place:
      raise ValueError(f"its arrays overlap or leave a gap at byte {place} of the data")
    place = end
  if place != size:
    raise ValueError(f"its arrays take {place:,} bytes, and {size:,} follow the header")

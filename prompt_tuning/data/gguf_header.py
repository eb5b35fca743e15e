"""The head of a GGUF file: settings, and the names, types and places of its tensors.

The reader of the package `gguf` believes the counts that a file states; here each is
held against the bytes that are left before anything is made of it. Format: little
endian, versions 2 and 3; the magic, the version, two counts, settings, tensors; then
the numbers, at multiples of `general.alignment`.
"""

import dataclasses
import functools
import math
import os
import reprlib
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from prompt_tuning.core import files

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
MOST_AXES = 4
# No axis of a model is longer.
_LARGEST = 1 << 31
_SCALARS = {
  0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?",
  10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
# Number of a type -> (name, weights of a block, bytes of a block).
TYPES = {
  0: ("F32", 1, 4),
  1: ("F16", 1, 2),
  2: ("Q4_0", 32, 18),
  3: ("Q4_1", 32, 20),
  6: ("Q5_0", 32, 22),
  7: ("Q5_1", 32, 24),
  8: ("Q8_0", 32, 34),
  12: ("Q4_K", 256, 144),
  13: ("Q5_K", 256, 176),
  14: ("Q6_K", 256, 210),
  30: ("BF16", 1, 2),
}


@dataclasses.dataclass(frozen=True)
class Tensor:
  """Attributes:
  kind: one of `TYPES`' names. shape: slowest axis first, as numpy has it.
  start: its first byte in the file. size: in bytes.
  """

  kind: str
  shape: tuple[int, ...]
  start: int
  size: int


@dataclasses.dataclass(frozen=True)
class Header:
  """Attributes:
  path: of the file. settings: name -> number, text, list of texts, or numbers.
  tensors: name -> what is said of it.
  """

  path: str
  settings: Mapping[str, Any]
  tensors: Mapping[str, Tensor]


def is_one(path: Any) -> bool:
  """Whether a file begins as a GGUF file does."""
  place = files.at(str(path))
  if not place.is_file():
    return False
  with place.open("rb") as file:
    return file.read(len(MAGIC)) == MAGIC


def read(path: Any) -> Header:
  """The head of a file; no weights are read.

  Raises:
    ValueError: if it is no GGUF file, damaged, or holds tensors of another type.
  """
  place, stamp = files.at(str(path)), None
  if not files.is_remote(str(path)) and place.is_file():
    stat = os.stat(place)
    stamp = stat.st_mtime_ns, stat.st_size, stat.st_ino
  return _read(str(path), stamp)


@functools.lru_cache(maxsize=4)
def _read(path: str, stamp: Any) -> Header:
  """`stamp` tells a file from another that took its place."""
  del stamp
  place = files.at(path)
  if not place.is_file():
    raise ValueError(f"{path!r} cannot be read: it is no regular file.")
  try:
    with place.open("rb") as file:
      return _header(path, _Bytes(file))
  except (OSError, ValueError, OverflowError) as error:
    raise ValueError(f"{path!r} is a damaged GGUF file: {error}.") from error


class _Bytes:
  """A file from its start on; what it has not is refused before it is asked for."""

  def __init__(self, file: BinaryIO) -> None:
    self.file = file
    self.size = file.seek(0, 2) or file.tell()
    file.seek(0)
    self.place = 0

  def take(self, count: int) -> bytes:
    """The next bytes."""
    self.check(count, 1)
    self.place += count
    return self.file.read(count)

  def check(self, count: int, width: int) -> None:
    """Refuses `count` things of at least `width` bytes if the rest is shorter."""
    if count * width > self.size - self.place:
      raise ValueError(
        f"it says that {count:,} times {width} bytes follow byte {self.place:,}, and "
        f"ends at {self.size:,}"
      )

  def number(self, form: str) -> Any:
    """The next number."""
    return struct.unpack(form, self.take(struct.calcsize(form)))[0]

  def text(self) -> str:
    """The next text: its length, its bytes."""
    raw = self.take(self.number("<Q"))
    try:
      return raw.decode("utf-8")
    except UnicodeDecodeError as error:
      raise ValueError(f"{reprlib.repr(raw)} is no text in UTF-8") from error

  def value(self, kind: int) -> Any:
    """The next value of a setting."""
    if kind == _STRING:
      return self.text()
    if kind in _SCALARS:
      form = np.dtype(_SCALARS[kind])
      return np.frombuffer(self.take(form.itemsize), form)[0].item()
    if kind != _ARRAY:
      raise ValueError(f"a setting has the type {kind}")
    inner, count = self.number("<I"), self.number("<Q")
    if inner == _STRING:
      self.check(count, 8)
      return [self.text() for _ in range(count)]
    if inner not in _SCALARS:
      raise ValueError(f"a list holds the type {inner}")
    form = np.dtype(_SCALARS[inner])
    self.check(count, form.itemsize)
    return np.frombuffer(self.take(count * form.itemsize), form)


def _header(path: str, data: _Bytes) -> Header:
  if data.take(4) != MAGIC:
    raise ValueError("it does not begin with GGUF")
  version = data.number("<I")
  if version not in VERSIONS:
    raise ValueError(f"it is of version {version}; known are {VERSIONS}")
  tensors, count = data.number("<Q"), data.number("<Q")
  # A name's length, its type, a byte; a name's length, axes, type, place.
  data.check(count, 13)
  data.check(tensors, 24)
  settings: dict[str, Any] = {}
  for _ in range(count):
    name = data.text()
    if name in settings:
      raise ValueError(f"it says {name!r} twice")
    settings[name] = data.value(data.number("<I"))
  stated = [_tensor(data) for _ in range(tensors)]
  return Header(path, settings, _placed(stated, _start(settings, data), data.size))


def _tensor(data: _Bytes) -> tuple[str, int, tuple[int, ...], int]:
  """(name, type, shape, first byte behind the head)."""
  name, axes = data.text(), data.number("<I")
  if axes > MOST_AXES:
    raise ValueError(f"{name!r} has {axes} axes")
  sizes = [data.number("<Q") for _ in range(axes)]
  if not all(0 < size <= _LARGEST for size in sizes):
    raise ValueError(f"{name!r} has the shape {sizes}")
  return name, data.number("<I"), tuple(reversed(sizes)), data.number("<Q")


def _start(settings: Mapping[str, Any], data: _Bytes) -> tuple[int, int]:
  """(first byte of the numbers, what each tensor's place is a multiple of)."""
  step = settings.get("general.alignment", ALIGNMENT)
  if type(step) is not int or not 0 < step <= 1 << 20 or step & (step - 1):
    raise ValueError(f"general.alignment is {reprlib.repr(step)}")
  return -(-data.place // step) * step, step


def _placed(
  stated: list[tuple[str, int, tuple[int, ...], int]], start: tuple[int, int], end: int
) -> dict[str, Tensor]:
  first, step = start
  found: dict[str, Tensor] = {}
  for name, number, shape, offset in stated:
    if name in found:
      raise ValueError(f"it holds {name!r} twice")
    if number not in TYPES:
      known = ", ".join(kind for kind, _, _ in TYPES.values())
      raise ValueError(f"{name!r} is of type {number}, which is none of {known}")
    kind, block, width = TYPES[number]
    if (shape[-1] if shape else 1) % block:
      raise ValueError(f"{name!r} of shape {shape} is no multiple of {block} weights")
    size = math.prod(shape) // block * width
    if offset % step or first + offset + size > end:
      raise ValueError(
        f"{name!r} takes {size:,} bytes from {first + offset:,}, of {end:,}"
      )
    found[name] = Tensor(kind, shape, first + offset, size)
  place = first
  for tensor in sorted(found.values(), key=lambda tensor: tensor.start):
    if tensor.start < place:
      raise ValueError(f"its tensors overlap at byte {place:,}")
    place = tensor.start + tensor.size
  return found

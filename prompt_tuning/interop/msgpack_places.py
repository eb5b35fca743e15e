"""Where things stand in a msgpack file; long bytes stay where they are.

The msgpack library hands out every value in memory, so a file that holds a model's
arrays would be held twice. Here heads are read, and what is long is a `Span`. Nothing
in a file is executed.
"""

import dataclasses
import struct
from typing import Any

from prompt_tuning.interop.lazy import UnreadableError

# No tree of weights is nested as deep, and no name is as long.
DEPTH = 64
NAME_BYTES = 4096
# Head byte -> (struct format, bytes) of a number.
NUMBERS = {
  0xCA: ">f",
  0xCB: ">d",
  0xCC: ">B",
  0xCD: ">H",
  0xCE: ">I",
  0xCF: ">Q",
  0xD0: ">b",
  0xD1: ">h",
  0xD2: ">i",
  0xD3: ">q",
}
CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
# Head byte -> (kind, bytes of the length that follows).
LONG = {
  0xC4: ("bytes", 1),
  0xC5: ("bytes", 2),
  0xC6: ("bytes", 4),
  0xC7: ("extension", 1),
  0xC8: ("extension", 2),
  0xC9: ("extension", 4),
  0xD9: ("text", 1),
  0xDA: ("text", 2),
  0xDB: ("text", 4),
  0xDC: ("array", 2),
  0xDD: ("array", 4),
  0xDE: ("map", 2),
  0xDF: ("map", 4),
}
FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}


@dataclasses.dataclass(frozen=True)
class Span:
  """Attributes:
  start, length: bytes of the file. code: extension type, None for plain bytes.
  """

  start: int
  length: int
  code: int | None = None


def places(file: Any, start: int = 0, end: int | None = None) -> Any:
  """The value that stands at a byte of a file, with a `Span` for bytes and extensions.

  Args:
    file: opened for bytes. start: where the value begins.
    end: where the file, or what the value stands in, ends.

  Raises:
    UnreadableError: if it is no msgpack, or goes on past `end`.
  """
  if end is None:
    end = file.seek(0, 2) or file.tell()
  file.seek(start)
  return _Reader(file, end).value(0)


class _Reader:
  def __init__(self, file: Any, end: int) -> None:
    self.file, self.end = file, end

  def take(self, count: int) -> bytes:
    if count > self.left():
      raise UnreadableError("it is cut short, or no msgpack")
    data = self.file.read(count)
    if len(data) != count:
      raise UnreadableError("it is cut short")
    return data

  def left(self) -> int:
    return self.end - self.file.tell()

  def value(self, depth: int) -> Any:
    head = self.take(1)[0]
    if head < 0x80 or head >= 0xE0:
      return head if head < 0x80 else head - 0x100
    if head in CONSTANTS:
      return CONSTANTS[head]
    if head in NUMBERS:
      form = NUMBERS[head]
      return struct.unpack(form, self.take(struct.calcsize(form)))[0]
    if head in FIXED_EXTENSIONS:
      return self.span(FIXED_EXTENSIONS[head], extension=True)
    if head < 0xC0:
      kind, bits = (("map", 4), ("array", 4), ("text", 5))[min((head - 0x80) >> 4, 2)]
      return self.long(kind, head & ((1 << bits) - 1), depth)
    if head not in LONG:
      raise UnreadableError(f"it is no msgpack: the byte {head:#x}")
    kind, width = LONG[head]
    return self.long(kind, int.from_bytes(self.take(width), "big"), depth)

  def long(self, kind: str, count: int, depth: int) -> Any:
    if kind == "text":
      return self.text(count)
    if count > self.left() or (depth >= DEPTH and kind in ("array", "map")):
      raise UnreadableError("it is cut short, nested too deep, or no msgpack")
    if kind == "array":
      return [self.value(depth + 1) for _ in range(count)]
    if kind == "map":
      return {self.key(): self.value(depth + 1) for _ in range(count)}
    return self.span(count, kind == "extension")

  def text(self, count: int) -> str:
    if count > NAME_BYTES:
      raise UnreadableError(f"it holds a text of {count} bytes")
    try:
      return self.take(count).decode("utf-8")
    except UnicodeDecodeError as error:
      raise UnreadableError(f"it holds a text that is no UTF-8: {error}") from error

  def key(self) -> Any:
    found = self.value(DEPTH)
    if not isinstance(found, (str, int)):
      raise UnreadableError(f"it has a key {found!r}")
    return found

  def span(self, length: int, extension: bool) -> Span:
    code = struct.unpack(">b", self.take(1))[0] if extension else None
    start = self.file.tell()
    if length > self.left():
      raise UnreadableError("it is cut short, or no msgpack")
    self.file.seek(start + length)
    return Span(start, length, code)

"""The lines of a text file, plain or gzipped, near or far, one at a time.

UTF-8, with or without a mark of it at the start. Lines end in "\\n" or "\\r\\n" alone:
"\\u2028", "\\x85" and their like stand inside a text. Memory holds one line, whatever
the file's size.
"""

import contextlib
import dataclasses
import gzip
import os
import pathlib
import stat
import zlib
from collections.abc import Iterator
from typing import Any

from prompt_tuning.core import files

CHUNK = 1 << 20
# Bytes of the longest line.
MOST_LINE = 64 << 20
# A gzip file may open to so many bytes, or to so many times its own size.
FREE_BYTES = 64 << 20
MOST_RATIO = 200


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
  """A line of a file, without its end, and its number, counted from 1."""

  path: str
  number: int
  text: str

  @property
  def where(self) -> str:
    """As messages name it."""
    return f"{self.path} line {self.number}"


def lines(path: str, argument: str) -> Iterator[Line]:
  """The lines of a file; the empty lines at its end are none.

  Args:
    path: local, or of a kind that `etils.epath` opens ("gs://...").
    argument: who names the file, for messages.

  Raises:
    ValueError: naming the file, and the line where there is one, of what is wrong: no
      regular file, none that can be read, no whole gzip file or one that opens to more
      than `MOST_RATIO` times its size, bytes that are no UTF-8 text, a line of more
      than `MOST_LINE` bytes.
  """
  path = os.fspath(path)
  blank = 0
  with _opened(path, argument) as stream:
    for number, data in enumerate(_split(_chunks(stream, path, argument), path), 1):
      data = data.removesuffix(b"\r")
      if not data.strip(b"\r"):
        blank += 1
        continue
      for before in range(number - blank, number):
        yield Line(path, before, "")
      blank = 0
      yield Line(path, number, _decoded(data, f"{path} line {number}"))


@contextlib.contextmanager
def _opened(path: str, argument: str) -> Iterator[Any]:
  """A regular file, open; never one that waits for a writer or has no end."""
  try:
    place = files.at(path)
    if isinstance(place, pathlib.Path) and not stat.S_ISREG(os.stat(place).st_mode):
      what = "a folder" if place.is_dir() else "a pipe or a device"
      raise ValueError(
        f"`{argument}` is {path!r}, which cannot be read: it is {what}, not a regular "
        "file."
      )
    stream = place.open("rb")
  except FileNotFoundError:
    raise ValueError(
      f"`{argument}` is {path!r}, which does not exist. A relative path starts at the "
      "task's `directory`, or else where the program was started."
    ) from None
  except OSError as error:
    raise ValueError(
      f"`{argument}` is {path!r}, which cannot be read: {error}."
    ) from error
  with stream:
    yield stream


def _chunks(stream: Any, path: str, argument: str) -> Iterator[bytes]:
  if not path.lower().endswith(".gz"):
    source = stream
  else:
    source = gzip.GzipFile(fileobj=stream)
  opened = 0
  while True:
    try:
      data = source.read(CHUNK)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
      raise ValueError(
        f"`{argument}` is {path!r}, which is no whole gzip file: {error}."
      ) from error
    except OSError as error:
      raise ValueError(
        f"`{argument}` is {path!r}, which cannot be read: {error}."
      ) from error
    if not data:
      return
    opened += len(data)
    if opened > FREE_BYTES and opened > MOST_RATIO * stream.tell():
      raise ValueError(
        f"`{argument}` is {path!r}, which opens to more than {MOST_RATIO} times its "
        f"size and to more than {FREE_BYTES >> 20} MiB, as no file of texts does. If "
        "it is one, unpack it and name the plain file."
      )
    yield data


def _split(chunks: Iterator[bytes], path: str) -> Iterator[bytes]:
  """Lines without their "\\n"; a mark of UTF-8 at the start is left out."""
  rest, number = b"", 0
  for first, data in _numbered(chunks):
    parts = (rest + data).split(b"\n")
    if first:
      parts[0] = parts[0].removeprefix(b"\xef\xbb\xbf")
    rest = parts.pop()
    yield from parts
    number += len(parts)
    if len(rest) > MOST_LINE:
      raise ValueError(
        f"{path} line {number + 1} is longer than {MOST_LINE >> 20} MiB. Lines end in "
        "line feeds; is this a file of texts?"
      )
  if rest:
    yield rest


def _numbered(chunks: Iterator[bytes]) -> Iterator[tuple[bool, bytes]]:
  for number, data in enumerate(chunks):
    yield not number, data


def _decoded(data: bytes, where: str) -> str:
  try:
    text = data.decode("utf-8")
  except UnicodeDecodeError as error:
    raise ValueError(
      f"{where} is not UTF-8: byte {error.object[error.start]:#04x} at its position "
      f"{error.start + 1}. Save the file as UTF-8."
    ) from None
  if "\0" in text:
    raise ValueError(
      f"{where} holds the character NUL at its position {text.index(chr(0)) + 1}, as "
      "files in UTF-16 and damaged ones do. Save the file as UTF-8, without it."
    )
  return text

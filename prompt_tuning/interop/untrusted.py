"""Files from strangers are data: regular files of their folder, JSON of known kinds.

Whatever else is found is an `UnreadableError` that names the file and, in JSON, the
key. Nothing outside the folder is opened, and nothing is waited for.
"""

import dataclasses
import json
import math
import os
import pathlib
import reprlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prompt_tuning.core import files
from prompt_tuning.core.folders import current
from prompt_tuning.interop.lazy import UnreadableError, check_regular, open_bytes

# No card, configuration or index is longer or nested deeper.
JSON_BYTES = 64 << 20
DEPTH = 64


def is_plain(name: Any) -> bool:
  """Whether a name is that of something in a folder, on every system."""
  pure = pathlib.PurePosixPath, pathlib.PureWindowsPath
  return (
    isinstance(name, str)
    and name not in ("", ".", "..")
    and "\0" not in name
    and all(kind(name).name == name for kind in pure)
  )


def inside(folder: Any, name: Any) -> Any:
  """The path of a regular file of a folder, by the name that another file gives it.

  A link may lead to another file of the folder, or to where Hugging Face's cache keeps
  the files that its `snapshots/` show.

  Raises:
    UnreadableError: if the name leads elsewhere, or to no regular file.
  """
  if not is_plain(name):
    raise UnreadableError(
      f"{str(folder)!r} names {reprlib.repr(name)}, which is no name of a file in it."
    )
  path = current(folder, name)
  folder = path.parent
  check_regular(path)
  if files.is_remote(folder):
    return path
  real, home = os.path.realpath(path), os.path.realpath(folder)
  homes, above = [home], os.path.dirname(home)
  if os.path.basename(above) == "snapshots":
    homes.append(os.path.join(os.path.dirname(above), "blobs"))
  if not any(real.startswith(os.path.join(place, "")) for place in homes):
    raise UnreadableError(
      f"{str(path)!r} is a link that leaves its folder, to {real!r}. Put the file "
      "itself there."
    )
  return path


def parse(data: bytes, where: str) -> Any:
  """The value of a JSON text.

  Raises:
    UnreadableError: if it is none, holds NaN or an infinity, or is nested too deep.
  """
  try:
    text = data.decode("utf-8")
    found = json.loads(text, parse_constant=_finite, parse_float=_finite)
  except (ValueError, RecursionError) as error:
    raise UnreadableError(f"{where!r} cannot be read: {error}.") from error
  for depth, _ in enumerate(_levels(found)):
    if depth >= DEPTH:
      raise UnreadableError(f"{where!r} is nested deeper than {DEPTH}.")
  return found


def _finite(text: str) -> float:
  value = float(text)
  if not math.isfinite(value):
    raise ValueError(f"it holds the number {text[:40]}, which is not finite")
  return value


def _levels(value: Any) -> Iterator[list[Any]]:
  """The containers of a tree, level by level."""
  level = [value]
  while level := [one for one in level if isinstance(one, (dict, list))]:
    yield level
    level = [
      inner
      for one in level
      for inner in (one.values() if isinstance(one, dict) else one)
    ]


def read_object(path: Any) -> dict[str, Any]:
  """The object in a JSON file, local or not.

  Raises:
    UnreadableError: if there is none.
  """
  with open_bytes(path) as file:
    data = file.read(JSON_BYTES + 1)
  if len(data) > JSON_BYTES:
    raise UnreadableError(f"{str(path)!r} is longer than {JSON_BYTES:,} bytes.")
  found = parse(data, str(path))
  if not isinstance(found, dict):
    raise UnreadableError(f"{str(path)!r} holds {type(found).__name__}, not an object.")
  return found


@dataclasses.dataclass(frozen=True)
class Stated:
  """A JSON object whose fields are read as the kinds that they must be.

  Every reader raises `UnreadableError` for a field that is absent or of another kind.

  Attributes:
    fields: name -> value. where: the file. at: dotted place of the object in it.
  """

  fields: dict[str, Any]
  where: str
  at: str = ""

  def need(self, key: str, fits: Callable[[Any], bool], wanted: str) -> Any:
    """The value of a key; `wanted` says in words what fits."""
    if key not in self.fields:
      raise UnreadableError(f"{self.where!r} lacks {self.at}{key}: {wanted}.")
    value = self.fields[key]
    if not fits(value):
      raise UnreadableError(
        f"{self.where!r} says {self.at}{key} is {reprlib.repr(value)}; it must be "
        f"{wanted}."
      )
    return value

  def text(self, key: str, among: Sequence[str] | None = None) -> str:
    """A text, one of `among` if given."""
    wanted = "a text" if among is None else f"one of {list(among)}"

    def fits(value: Any) -> bool:
      return isinstance(value, str) and (among is None or value in among)

    return self.need(key, fits, wanted)

  def texts(self, key: str) -> list[str]:
    """A list of texts, at least one, each once."""

    def fits(value: Any) -> bool:
      listed = isinstance(value, list) and all(isinstance(one, str) for one in value)
      return bool(listed and value and len(set(value)) == len(value))

    return self.need(key, fits, "a list of texts, each once")

  def count(self, key: str, least: int = 0) -> int:
    """A whole number."""

    def fits(value: Any) -> bool:
      return type(value) is int and value >= least

    return self.need(key, fits, f"a whole number from {least} on")

  def flag(self, key: str) -> bool:
    """True or false."""
    return self.need(key, lambda value: isinstance(value, bool), "true or false")

  def child(self, key: str) -> "Stated":
    """An object within."""
    value = self.need(key, lambda value: isinstance(value, dict), "an object")
    return Stated(value, self.where, f"{self.at}{key}.")

  def has(self, key: str) -> bool:
    """Whether a key that may be absent or null says something."""
    return self.fields.get(key) is not None

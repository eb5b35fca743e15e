"""Cards of products, read as data: every key that is read is checked here first.

A card comes with a prompt from whoever wrote it. So nothing in it is run, imported,
fetched or parsed as gin; what it says is refused unless it has the type that it must
have.
"""

import json
import math
import os
import stat
from collections.abc import Callable, Mapping
from typing import Any

from prompt_tuning.core.files import is_remote
from prompt_tuning.core.format import PLACES

# Cards are some kilobytes; the longest lists are labels and names of a whole model.
MOST = 64 << 20
# A fingerprint is sixteen hexadecimal digits, a digest of a file sixty-four.
_DIGITS = frozenset("0123456789abcdef")


def read(path: Any, form: str) -> dict[str, Any]:
  """The fields of a card.

  Args:
    path: of card.json, here or remote. form: the format that it must state.

  Raises:
    ValueError: naming the file, and the key that is missing or wrong.
  """
  card = read_json(path)
  if card.get("format") != form:
    raise ValueError(
      f"{str(path)!r} says format {card.get('format')!r}; this version reads {form!r}."
    )
  for key in ("module", "trained", "shapes"):
    if key not in card:
      raise ValueError(f"{str(path)!r} lacks {key!r}. Copy the whole folder again.")
  _check(card, SCHEMA, str(path), "")
  unknown = sorted(set(card["trained"]) - set(card["shapes"]))
  if unknown:
    raise ValueError(
      f"{str(path)!r} says that {unknown[0]!r} was trained, and gives no shape of it. "
      "Copy the whole folder again."
    )
  return card


def read_json(path: Any) -> dict[str, Any]:
  """The object of a JSON file of ours.

  Raises:
    ValueError: for anything else, in one sentence that names the file.
  """
  where = str(path)
  try:
    if not is_remote(path) and not stat.S_ISREG(os.stat(path).st_mode):
      raise ValueError("it is no regular file")
    with path.open("rb") as file:
      data = file.read(MOST + 1)
    if len(data) > MOST:
      raise ValueError(f"it has more than {MOST:,} bytes")
    found = json.loads(data.decode("utf-8"), parse_constant=_refuse)
    if not isinstance(found, dict):
      raise ValueError(f"it holds a {type(found).__name__}, not an object")
  except (OSError, ValueError, RecursionError) as error:
    said = str(error) or type(error).__name__
    raise ValueError(f"{where!r} is damaged: {said}. Copy it again.") from error
  return found


def _refuse(name: str) -> None:
  raise ValueError(f"it holds the number {name}")


def _text(value: Any) -> bool:
  return isinstance(value, str)


def _whole(value: Any) -> bool:
  return type(value) is int and 0 <= value < 2**31


def _number(value: Any) -> bool:
  if type(value) is int:
    return abs(value) < 2**1023
  return type(value) is float and math.isfinite(value)


def _hexadecimal(value: Any) -> bool:
  return _text(value) and bool(value) and set(value) <= _DIGITS


def _or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
  return lambda value: value is None or fits(value)


def _list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
  return lambda value: isinstance(value, list) and all(map(fits, value))


def _map_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
  return lambda value: isinstance(value, dict) and all(map(fits, value.values()))


def _plain(value: Any) -> bool:
  """A text, a number, or a list of such."""
  if isinstance(value, list):
    return all(map(_plain, value))
  return value is None or isinstance(value, (str, bool)) or _number(value)


# Key -> what it must be, in words and as a test; or the schema of an object below.
SCHEMA: Mapping[str, Any] = {
  "method": ("a text", _text),
  "layout": {
    "inputs": ("a whole number", _whole),
    "targets": ("a whole number", _whole),
    "encoder_prompt": ("a whole number", _whole),
    "decoder_prompt": ("a whole number", _whole),
    "place": (f"one of {PLACES}", lambda value: value in PLACES),
    "truncate": ("true or false", lambda value: isinstance(value, bool)),
  },
  "backbone": {
    "name": ("a text", _or_none(_text)),
    "fingerprint": ("hexadecimal digits", _or_none(_hexadecimal)),
    "width": ("a whole number", _or_none(_whole)),
    "family": ("a text", _or_none(_text)),
    "architecture": ("an object of numbers and texts", _map_of(_plain)),
  },
  "task": {
    "name": ("a text", _text),
    "labels": ("a list of texts", _or_none(_list_of(_text))),
    "metrics": ("a list of texts", _list_of(_text)),
  },
  "gin": ("a text", _text),
  "step": ("a whole number", _whole),
  "scores": ("an object of numbers", _map_of(_number)),
  "branches": ("a list of texts", _list_of(_text)),
  "trained": ("a list of texts", _list_of(_text)),
  "shapes": ("an object of lists of whole numbers", _map_of(_list_of(_whole))),
  "digest": ("hexadecimal digits", _hexadecimal),
}


def _check(fields: Any, schema: Mapping[str, Any], where: str, above: str) -> None:
  if not isinstance(fields, dict):
    raise ValueError(f"In {where!r}, {above.strip('.')} is no object.")
  for key, wanted in schema.items():
    if key not in fields:
      continue
    if isinstance(wanted, Mapping):
      _check(fields[key], wanted, where, f"{above}{key}.")
      continue
    words, fits = wanted
    if not fits(fields[key]):
      raise ValueError(
        f"In {where!r}, {above}{key} is {_short(fields[key])}; it must be {words}."
      )


def _short(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 60 else f"{text[:57]}..."

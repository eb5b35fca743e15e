"""What a text is, and how messages show texts: cut short, whatever was given."""

import itertools
import reprlib
from collections.abc import Iterable
from typing import Any

# Written once in an input where the prompt shall stand. It is no part of the text that
# the model reads: `dataset` takes it out and says in `mark` where it stood.
MARK = "<prompt>"
# Messages list so many names at the most.
SHOWN = 10


def some(values: Iterable[str], most: int = SHOWN) -> list[str]:
  """The different values, in order of appearance, cut short."""
  different = itertools.islice(dict.fromkeys(values), most + 1)
  found = [v if len(v) <= 80 else f"{v[:77]}..." for v in map(str, different)]
  return found if len(found) <= most else [*found[:most], "..."]


def short(value: Any, most: int = 80) -> str:
  """A value as messages show it, cut short."""
  text = repr(value[:most]) if isinstance(value, str) else reprlib.repr(value)
  return text if len(text) <= most else f"{text[: most - 3]}..."


def no_text(value: str) -> str:
  """What keeps a value from being a text of a vocabulary; empty where nothing does."""
  if "\0" in value:
    return f"the character NUL at its position {value.index(chr(0)) + 1}"
  if value.isascii():
    return ""
  try:
    value.encode("utf-8")
  except UnicodeEncodeError as error:
    return (
      f"half of a surrogate pair, {value[error.start]!r}, at its position "
      f"{error.start + 1}: what is left of a character cut in two"
    )
  return ""


def plain(where: str, text: str) -> str:
  """A text as the whole input.

  Raises:
    ValueError: if no vocabulary could read it, or it marks several places.
  """
  fault = no_text(text)
  if fault:
    raise ValueError(f"{where} is {short(text)}, which has {fault}. Take it out.")
  if text.count(MARK) > 1:
    raise ValueError(
      f"{where} is {short(text)}, which holds {MARK} {text.count(MARK)} times; "
      "it marks the one place of the prompt."
    )
  return text

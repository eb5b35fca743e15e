"""What the macros of a configuration may be, asked of the one table of them."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from prompt_tuning.engine import library
from prompt_tuning.engine.macro_table import TABLE as TABLE

# Longest value that a message shows whole.
SHOWN = 80
# Files whose defaults come first, where several files set one macro.
FIRST = ("gin/train.gin", "gin/eval.gin", "gin/infer.gin", "gin/tasks/files.gin")


@dataclasses.dataclass(frozen=True)
class Record:
  """One line of the list of macros.

  Attributes:
    name: of the macro. type: what fits, in words. meaning: what it does.
    default: gin text of the first file that sets it, or None if a user must.
    file: that file, such as "gin/train.gin", or None.
  """

  name: str
  type: str
  default: str | None
  meaning: str
  file: str | None


def wrong(name: str, value: Any, shown: str | None = None) -> str | None:
  """What is wrong with a macro's value, in one sentence; None where it fits.

  Args:
    name: of the macro; of one that the table lacks everything fits.
    value: with references followed, see `engine.kinds`.
    shown: the caller's name of it (a keyword in Python); None for the macro's.
  """
  row = TABLE.get(name)
  if row is None or row.kind.accepts(value):
    return None
  return said(name, repr(value), row.kind.cure(value), shown)


def said(name: str, value: str, cure: str | None, shown: str | None = None) -> str:
  """The sentence about a value, given as text, that does not fit a macro."""
  row = TABLE[name]
  value = " ".join(value.split())
  value = value if len(value) <= SHOWN else f"{value[: SHOWN - 3]}..."
  default, file = _defaults().get(name, (None, None))
  if cure is not None:
    fix = f"Give {cure}."
  elif row.fix or default is None:
    fix = row.fix or "Set it."
  else:
    fix = f"The default is {default} ({file})."
  return (
    f"`{shown or name}` is {value}; it must be {row.kind.words} ({row.meaning}). {fix}"
  )


def check(values: Mapping[str, Any], needed: bool = False) -> str | None:
  """The first thing wrong with the macros of a configuration; None where all fit.

  Args:
    values: macro -> value, with references followed.
    needed: whether a verb is about to run, which brings nothing of its own.
  """
  for name, value in values.items():
    if value is None and name in TABLE and TABLE[name].later and not needed:
      continue
    if found := wrong(name, value):
      return found
  sides = values.get("TASK_FEATURE_LENGTHS")
  ends = isinstance(sides, Mapping) and sides["targets"] == 1
  if ends and values.get("TRUNCATE") is True:
    return (
      f"`TASK_FEATURE_LENGTHS` is {sides} and `TRUNCATE` is True, which leaves of "
      "every target its end mark alone. Give targets 2 or more."
    )
  return None


def table() -> list[Record]:
  """Every macro, in the order of `TABLE`."""
  defaults = _defaults()
  return [
    Record(
      name,
      row.kind.words,
      defaults.get(name, (None, None))[0],
      row.meaning,
      defaults.get(name, (None, None))[1],
    )
    for name, row in TABLE.items()
  ]


def named() -> dict[str, str]:
  """Macro that a gin file of the library sets or reads -> the first such file."""
  pattern = re.compile(r"^([A-Z][A-Z0-9_]*)\s*=|%([A-Z][A-Z0-9_]*)", re.MULTILINE)
  found: dict[str, str] = {}
  for file in _ordered():
    source = library.texts()[file]
    source = re.sub(r"^\s*#.*$", "", source, flags=re.MULTILINE)
    for pair in pattern.findall(source):
      found.setdefault("".join(pair), file)
  return found


def _ordered() -> list[str]:
  """The library's files, those first that say most about a macro."""
  rest = set(library.texts()) - set(FIRST)
  return [*FIRST, *sorted(rest, key=lambda name: (not name.startswith("gin/"), name))]


def _defaults() -> dict[str, tuple[str, str]]:
  """Macro -> (its value as gin text, the file that says so).

  The first file that sets one decides; what must be set there has no default.
  """
  found: dict[str, tuple[str, str]] = {}
  # A value in brackets may fill several lines; those that follow are indented.
  pattern = r"^([A-Z][A-Z0-9_]*) = (.*(?:\n(?:[ \t].*|[\])}].*))*)"
  for file in _ordered():
    for name, value in re.findall(pattern, library.texts()[file], re.MULTILINE):
      found.setdefault(name, (" ".join(value.split()), file))
  return {name: own for name, own in found.items() if own[0] != "%gin.REQUIRED"}

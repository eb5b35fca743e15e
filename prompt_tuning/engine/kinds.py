"""What the value of a macro may be: each kind says what fits, in words, and what cures.

A value is what gin parsed, with references to other macros followed; an object that is
still to be made is a `Made`.
"""

import dataclasses
import difflib
import json
import numbers
import os
from collections.abc import Callable, Mapping
from typing import Any

# The largest whole number of a step's counters, and the largest float32.
LARGEST_WHOLE = 2**31 - 1
LARGEST = 3.4028234e38


@dataclasses.dataclass(frozen=True)
class Made:
  """`@name()` in gin, or `@name`: a function that nobody calls yet.

  Attributes:
    name: as gin spells it. called: whether it ends in `()`.
  """

  name: str
  called: bool

  def __repr__(self) -> str:
    return f"@{self.name}{'()' if self.called else ''}"


def _no_cure(value: Any) -> str | None:
  del value
  return None


@dataclasses.dataclass(frozen=True)
class Kind:
  """Attributes:
  words: what fits, to stand behind "it must be".
  fits: whether a value does. None and what is still to be made are asked elsewhere.
  cure: what was probably meant by a value that does not fit, in gin; None if unknown.
  none: whether None fits. text: whether a text may fit, so that quotes are a cure.
  function: whether a function that nobody called may stand there.
  """

  words: str
  fits: Callable[[Any], bool]
  cure: Callable[[Any], str | None] = _no_cure
  none: bool = False
  text: bool = False
  function: bool = False

  def accepts(self, value: Any) -> bool:
    """Whether a value fits."""
    if value is None:
      return self.none
    if isinstance(value, Made):
      return value.called or self.function
    return self.fits(value)


def optional(kind: Kind) -> Kind:
  """The same, or None."""
  return dataclasses.replace(kind, words=f"{kind.words}, or None", none=True)


def _is_whole(value: Any) -> bool:
  return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _number_in(value: Any) -> Any:
  """The number that a text or a fraction without a rest stands for, or None."""
  if isinstance(value, str):
    try:
      value = float(value)
    except ValueError:
      return None
  if isinstance(value, float) and abs(value) <= LARGEST:
    return int(value) if value == int(value) else value
  return value if _is_whole(value) else None


def whole(low: int = 0, high: int = LARGEST_WHOLE) -> Kind:
  """A whole number from `low` to `high`; True and False are none."""
  words = f"a whole number from {low}"
  if high != LARGEST_WHOLE:
    words += f" to {high}"

  def fits(value: Any) -> bool:
    return _is_whole(value) and low <= value <= high

  def cure(value: Any) -> str | None:
    found = _number_in(value)
    if isinstance(found, float) or found is None:
      return None
    if found > high:
      return f"{high} or less"
    return str(found) if fits(found) else None

  return Kind(words, fits, cure)


def number(
  low: float | None = None,
  high: float | None = None,
  above: float | None = None,
  below: float | None = None,
) -> Kind:
  """A finite number within bounds: `low` and `high` fit, `above` and `below` do not."""
  bounds = ((low, "from"), (above, "above"), (high, "to"), (below, "below"))
  words = [f"{word} {bound:g}" for bound, word in bounds if bound is not None]
  least = low if above is None else above
  most = high if below is None else below

  def fits(value: Any) -> bool:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
      return False
    inside = (least is None or value >= least) and (most is None or value <= most)
    return -LARGEST <= value <= LARGEST and inside and value not in (above, below)

  def cure(value: Any) -> str | None:
    found = _number_in(value) if isinstance(value, str) else None
    return str(found) if found is not None and fits(found) else None

  return Kind(" ".join(["a finite number", *words]), fits, cure)


def flag() -> Kind:
  """True or False, and no number that stands for them."""
  meant = {"1": "True", "0": "False", "true": "True", "false": "False"}
  return Kind(
    "True or False",
    lambda value: isinstance(value, bool),
    lambda value: meant.get(str(value).lower()),
  )


def text(words: str = "a text", blank: bool = False) -> Kind:
  """A text, not empty unless `blank` says so."""

  def fits(value: Any) -> bool:
    if not isinstance(value, str) or not (blank or value):
      return False
    # Half of a pair of surrogates is no character that a file could hold.
    return "\0" not in value and not any("\ud800" <= c <= "\udfff" for c in value)

  def cure(value: Any) -> str | None:
    return repr(str(value)) if isinstance(value, (int, float)) else None

  return Kind(words, fits, cure, text=True)


def path(blank: bool = False, words: str = "a path, as text in quotes") -> Kind:
  """A path, here or remote; no shell has read it, so `~` would be a folder's name."""
  one = text(words, blank)

  def fits(value: Any) -> bool:
    return one.fits(value) and os.path.expanduser(value) == value

  def cure(value: Any) -> str | None:
    if isinstance(value, str) and one.fits(os.path.expanduser(value)):
      return repr(os.path.expanduser(value))
    return one.cure(value)

  return dataclasses.replace(one, fits=fits, cure=cure)


def choice(*names: str) -> Kind:
  """One of some texts."""

  def cure(value: Any) -> str | None:
    found = difflib.get_close_matches(str(value).lower(), names, 1, 0.5)
    return repr(found[0]) if found else None

  listed = ", ".join(map(repr, names))
  # An unhashable value is compared, not looked up.
  return Kind(f"one of {listed}", lambda value: value in list(names), cure, text=True)


def _is_list(value: Any) -> bool:
  return isinstance(value, (list, tuple))


def texts(example: str) -> Kind:
  """A list or tuple of texts that are not empty; functions may stand among them."""
  one = text()

  def fits(value: Any) -> bool:
    return _is_list(value) and all(
      isinstance(item, Made) or one.fits(item) for item in value
    )

  def cure(value: Any) -> str | None:
    if isinstance(value, str) and value:
      return f"({value!r},)"
    if _is_list(value) and all(isinstance(item, (int, float)) for item in value):
      return repr([str(item) for item in value])
    return None

  return Kind(f"a list of texts, such as {example}", fits, cure)


def lengths() -> Kind:
  """A whole number from 1 for each side."""
  one, sides = whole(1), ("inputs", "targets")

  def fits(value: Any) -> bool:
    named = isinstance(value, Mapping) and set(value) == set(sides)
    return named and all(isinstance(v, Made) or one.fits(v) for v in value.values())

  def cure(value: Any) -> str | None:
    if not isinstance(value, Mapping):
      value = {"inputs": value}
    found = {"inputs": 128, "targets": 8}
    for side in sides:
      known = _number_in(value.get(side))
      found[side] = known if one.fits(known) else found[side]
    return json.dumps(found)

  words = 'two whole numbers from 1, such as {"inputs": 128, "targets": 8}'
  return Kind(words, fits, cure)


def mapping(example: str, values: Callable[[Any], bool] = lambda value: True) -> Kind:
  """A mapping from texts (or numbers) to values that pass."""

  def fits(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
      isinstance(key, (str, int, float)) and values(item) for key, item in value.items()
    )

  return Kind(f"a mapping, such as {example}", fits)


def sequence(example: str, items: Callable[[Any], bool]) -> Kind:
  """A list or tuple whose items pass."""

  def fits(value: Any) -> bool:
    return _is_list(value) and all(items(item) for item in value)

  return Kind(f"a list, such as {example}", fits)


def made(example: str, function: bool = False) -> Kind:
  """An object that gin makes; with `function` also what makes one."""

  def cure(value: Any) -> str | None:
    return f"@{value.name}()" if isinstance(value, Made) else None

  words = f"an object that gin makes, such as {example}"
  return Kind(words, lambda value: False, cure, function=function)

"""What a product's card says of how inputs are read and answers made.

  "reading": {"inputs": "review: {text}", "targets": "{label}", ...} or null
  "output": {"kind": "choice", "normalize_by_length": true, "chunk": 0} or null

A run writes it, those who answer read it. It is data: a kind of output is looked up
among those of `outputs.output`, and no other name, class or configuration is taken from
a card. Cards without these entries are read as if they said nothing.
"""

import dataclasses
import math
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from prompt_tuning.core.format import PLACES
from prompt_tuning.data import reading as readings
from prompt_tuning.data.reading import Reading
from prompt_tuning.outputs import output as outputs


class CardError(ValueError):
  """A card.json whose entry cannot be what it must be."""


@dataclasses.dataclass(frozen=True)
class Conventions:
  """Attributes:
  reading: template and columns, or None. output: of `outputs/`, or None.
  labels: of the task, or None.
  place: where the prompt stands. truncate: whether what is too long was cut.
  inputs, targets: lengths in training, or None where the card does not say.
  members: (name, labels or None) of each task of a mixture, in order.
  """

  reading: Reading | None = None
  output: Any = None
  labels: tuple[str, ...] | None = None
  place: str = "front"
  truncate: bool = False
  inputs: int | None = None
  targets: int | None = None
  members: tuple[tuple[str, tuple[str, ...] | None], ...] = ()

  @property
  def names(self) -> tuple[str, ...]:
    """Of the tasks of a mixture, in order."""
    return tuple(name for name, _ in self.members)


def said(task: Any, output: Any) -> dict[str, Any]:
  """The card's entries for a task and an output setting; None for one of neither."""
  reading = readings.of_task(task)
  return {
    "reading": None if reading is None else dataclasses.asdict(reading),
    # An output of the user's own code cannot be built again from data.
    "output": outputs.said(output),
  }


def of(card: Mapping[str, Any]) -> Conventions:
  """What a card says.

  Raises:
    CardError: naming the entry that is damaged.
  """
  layout = _object(card, "layout")
  truncate = layout.get("truncate", False)
  _check(isinstance(truncate, bool), "layout.truncate", truncate, "true or false")
  place = layout.get("place", "front")
  known = isinstance(place, str) and place in PLACES
  _check(known, "layout.place", place, f"one of {list(PLACES)}")
  sizes = {}
  for name in ("inputs", "targets"):
    sizes[name] = size = layout.get(name)
    fits = size is None or (_fits(size, int) and size >= 1)
    _check(fits, f"layout.{name}", size, "a whole number from 1 on")
  reading = None
  if card.get("reading") is not None:
    reading = _built(Reading, _object(card, "reading"), "reading")
    try:
      _ = reading.columns
    except ValueError as error:
      raise CardError(f"card.json: `reading.inputs`: {error}") from error
  labels = _object(card, "task").get("labels")
  fits = labels is None or (isinstance(labels, list) and _texts(labels))
  _check(fits, "task.labels", labels, "a list of texts, or null")
  return Conventions(
    reading,
    _output(card),
    tuple(labels) if labels else None,
    place,
    truncate,
    **sizes,
    members=_members(card),
  )


def _members(
  card: Mapping[str, Any],
) -> tuple[tuple[str, tuple[str, ...] | None], ...]:
  found = _object(card, "task").get("tasks")
  listed = found is None or isinstance(found, list)
  _check(listed, "task.tasks", found, "a list, or null")
  members = []
  for i, one in enumerate(found or ()):
    key = f"task.tasks[{i}]"
    _check(isinstance(one, Mapping), key, one, "an object")
    name, labels = one.get("name"), one.get("labels")
    _check(isinstance(name, str), f"{key}.name", name, "a text")
    fits = labels is None or (isinstance(labels, list) and _texts(labels))
    _check(fits, f"{key}.labels", labels, "a list of texts, or null")
    members.append((name, tuple(labels) if labels else None))
  return tuple(members)


def differences(known: Conventions, task: Any) -> list[str]:
  """How a task differs from what the prompt was trained with, in words."""
  found = []
  mine = readings.of_task(task)
  if mine is not None and known.reading is not None:
    for name in ("inputs", "targets", "label_map"):
      now, then = getattr(mine, name), getattr(known.reading, name)
      if now != then:
        found.append(f"{name.upper()} {now!r} (trained with {then!r})")
  names = tuple(getattr(one, "name", "") for one in getattr(task, "tasks", ()))
  if names and known.names and names != known.names:
    found.append(f"MEMBERS {list(names)} (trained with {list(known.names)})")
  labels = None if task.labels is None else tuple(task.labels)
  if known.labels is not None and labels != known.labels:
    now = None if labels is None else list(labels)
    found.append(f"LABELS {now!r} (trained with {list(known.labels)!r})")
  return found


def _output(card: Mapping[str, Any]) -> Any:
  if card.get("output") is None:
    return None
  data = dict(_object(card, "output"))
  kind = data.pop("kind", None)
  kinds = outputs.KINDS
  known = isinstance(kind, str) and kind in kinds
  _check(known, "output.kind", kind, f"one of {list(kinds)}")
  return _built(kinds[kind], data, "output")


def _built(settings: Any, data: Mapping[str, Any], key: str) -> Any:
  """A dataclass of plain fields, each of its type."""
  hints = typing.get_type_hints(settings)
  fields = {field.name: field for field in dataclasses.fields(settings)}
  for name, value in data.items():
    _check(name in fields, f"{key}.{name}", value, f"left out; known: {list(fields)}")
    _check(_fits(value, hints[name]), f"{key}.{name}", value, _words(hints[name]))
  for name, field in fields.items():
    needed = field.default is dataclasses.MISSING and name not in data
    _check(not needed, f"{key}.{name}", None, _words(hints[name]))
  try:
    return settings(**data)
  except ValueError as error:
    raise CardError(f"card.json: `{key}`: {error}") from error


def _fits(value: Any, hint: Any) -> bool:
  if hint in (bool, str, type(None)):
    return isinstance(value, hint)
  if hint is int:
    return isinstance(value, int) and not isinstance(value, bool)
  if hint is float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value)
  if typing.get_origin(hint) is Mapping:
    return isinstance(value, Mapping) and _texts([*value, *value.values()])
  return any(_fits(value, one) for one in typing.get_args(hint))


def _words(hint: Any) -> str:
  names = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "a text",
    type(None): "null",
  }
  if hint in names:
    return names[hint]
  if typing.get_origin(hint) is Mapping:
    return "an object of texts"
  return " or ".join(map(_words, typing.get_args(hint)))


def _texts(values: Sequence[Any]) -> bool:
  return all(isinstance(value, str) for value in values)


def _object(card: Mapping[str, Any], key: str) -> Mapping[str, Any]:
  value = card.get(key)
  value = {} if value is None else value
  _check(isinstance(value, Mapping), key, value, "an object")
  return value


def _check(fits: bool, key: str, value: Any, allowed: str) -> None:
  if not fits:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    raise CardError(
      f"card.json: `{key}` is {shown}; it must be {allowed}. The card is damaged, or "
      "of another version: take the prompt from its run again."
    )

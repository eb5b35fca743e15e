"""Targets as numbers, for heads: of a class, of several classes, or a number itself.

What a task's targets are follows from it: with a `separator` several of its labels,
else with `labels` one of them, else numbers.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from prompt_tuning.core.labels import parts
from prompt_tuning.data.texts import short, some

KINDS = ("label", "labels", "number")
WORDS = {
  "label": "one of its LABELS",
  "labels": "several of its LABELS, by a LABEL_SEPARATOR",
  "number": "a number, as it has no LABELS",
}


def kind(task: Any) -> str:
  """One of `KINDS`: what the targets of a task are."""
  if not task.labels:
    return "number"
  return "label" if getattr(task, "separator", None) is None else "labels"


def check(task: Any, wanted: str, reader: str) -> None:
  """Raises ValueError where a task's targets are not what a loss or an answer is of.

  Args:
    wanted: one of `KINDS`. reader: what reads them, for the message.
  """
  found = kind(task)
  if found != wanted:
    raise ValueError(
      f"{reader} is of targets each of which is {WORDS[wanted]}, but of the task "
      f"{task.name!r} each is {WORDS[found]}. Include the file of that kind: "
      f"gin/objectives/{found}.gin and gin/outputs/{found}.gin."
    )


def numbered(task: Any) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
  """A tokenised example -> the same with the feature `labels`.

  It is int32 [] (a label), float32 [K] (several: 1 at each that holds) or float32 [] (a
  number). The function raises ValueError for a target that is none.
  """
  separator, found = getattr(task, "separator", None), kind(task)
  places = {label: place for place, label in enumerate(task.labels or ())}

  def number(example: Mapping[str, Any]) -> dict[str, Any]:
    text = example["targets_pretokenized"]
    text = text.decode("utf-8") if isinstance(text, bytes) else str(text)
    value = _number(text) if found == "number" else _held(text, places, separator)
    return {**example, "labels": value}

  return number


def _held(text: str, places: Mapping[str, int], separator: str | None) -> np.ndarray:
  one = [text if text in places else text.strip()]
  held = one if separator is None else parts(text, separator)
  unknown = [label for label in held if label not in places]
  if unknown:
    raise ValueError(
      f"The target {short(text)} names {short(unknown[0])}, which is not among the "
      f"labels (LABELS), {some(places)}."
    )
  if separator is None:
    return np.asarray(places[held[0]], np.int32)
  value_K = np.zeros(len(places), np.float32)
  value_K[[places[label] for label in held]] = 1
  return value_K


def _number(text: str) -> np.ndarray:
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  if not math.isfinite(value):
    raise ValueError(
      f"The target {short(text)} is no number, and the task has no labels. Set LABELS "
      "for a classification."
    )
  return np.asarray(value, np.float32)

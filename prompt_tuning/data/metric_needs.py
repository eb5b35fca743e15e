"""What a metric asks of a task, checked before anything trains.

A correlation wants numbers, an F1 of two classes two classes, and the scores of MultiRC
and Winograd what their own examples say beside the texts.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from prompt_tuning.data import metrics as metric_room
from prompt_tuning.data.texts import short, some

NUMBERS = ("pearson", "spearman")
TWO_CLASSES = ("f1_binary", "multirc")
CLASSES = ("f1_macro", "matthews")
DETAILS: Mapping[str, str] = {"multirc": "group", "wsc": "label"}
# More different targets than this are no classes, unless they are named as labels.
MOST_CLASSES = 64


def check(
  names: Sequence[str], labels: Sequence[str] | None, separator: str | None = None
) -> None:
  """Raises ValueError for a metric that there is not, or that the labels rule out.

  Args:
    names: of metrics. labels: of the task, or None.
    separator: where a target names several labels, what stands between them.
  """
  metric_room.check(names)
  for name in names:
    if name in TWO_CLASSES + CLASSES and separator is not None:
      raise ValueError(
        f"`metrics` names {name!r}, which is of one label a target, but targets name "
        f"several (LABEL_SEPARATOR is {separator!r}). Take 'f1_labels' or 'accuracy'."
      )
    if name == "f1_labels" and separator is None:
      raise ValueError(
        "`metrics` names 'f1_labels', which is of several labels a target, but the "
        "task has no separator (LABEL_SEPARATOR). Take 'f1_macro' or 'accuracy'."
      )
  for name in names if labels is not None else ():
    if name in TWO_CLASSES and len(labels) != 2:
      raise ValueError(
        f"`metrics` names {name!r}, which is of two classes, but there are "
        f"{len(labels)} labels: {some(labels)}. Take 'f1_macro' or 'accuracy'."
      )
    words = [label for label in labels if not _is_number(label)]
    if name in NUMBERS and words:
      raise ValueError(
        f"`metrics` names {name!r}, which correlates numbers, but the label "
        f"{short(words[0])} is none. Take 'accuracy', 'f1_macro' or 'matthews'."
      )


def check_examples(
  names: Sequence[str],
  examples: Sequence[Mapping[str, Any]],
  labels: Sequence[str] | None,
  split: str,
) -> None:
  """Raises ValueError for a metric that cannot score a split, naming what is amiss.

  Args:
    names: of metrics. examples: of the split. labels: of the task, or None.
    split: its name, for messages.
  """
  for name in names:
    where = f"`metrics` names {name!r}, "
    if name in DETAILS:
      metric_room.details(examples, DETAILS[name], name)
    if name in NUMBERS:
      _check_numbers(examples, where, split)
    if labels is not None or name not in TWO_CLASSES + CLASSES:
      continue
    found = list(dict.fromkeys(example["targets"].strip() for example in examples))
    if name in TWO_CLASSES and len(found) > 2:
      raise ValueError(
        f"{where}which is of two classes, but the split {split!r} has {len(found)} "
        f"different targets: {some(found)}. Take 'f1_macro' or 'accuracy'."
      )
    if len(found) > MOST_CLASSES:
      raise ValueError(
        f"{where}which is of classes, but the split {split!r} has {len(found)} "
        f"different targets: {some(found, 3)}. Name the classes as labels (LABELS), or "
        "take 'exact_match', 'token_f1' or 'rouge'."
      )


def _check_numbers(
  examples: Sequence[Mapping[str, Any]], where: str, split: str
) -> None:
  for number, example in enumerate(examples):
    if not _is_number(example["targets"]):
      raise ValueError(
        f"{where}which correlates numbers, but the target "
        f"{short(example['targets'])} of example {number} of the split {split!r} is "
        "none. Take 'accuracy', 'f1_macro' or 'exact_match'."
      )


def _is_number(text: str) -> bool:
  try:
    return math.isfinite(float(text))
  except ValueError:
    return False

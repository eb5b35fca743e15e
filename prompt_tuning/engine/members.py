"""The tasks that a task is made of: each has labels and scores of its own."""

from collections.abc import Mapping, Sequence
from typing import Any

Labels = Sequence[str] | None


def of(task: Any) -> tuple[Any, ...]:
  """The members of a mixture, or the task alone; none of None."""
  if task is None:
    return ()
  return tuple(getattr(task, "tasks", (task,)))


def said(task: Any) -> list[dict[str, Any]] | None:
  """What a card says of members: names and labels, in order; None for a single task."""
  if not hasattr(task, "tasks"):
    return None
  return [
    {"name": one.name, "labels": None if one.labels is None else list(one.labels)}
    for one in task.tasks
  ]


def by_number(examples: Sequence[Mapping[str, Any]], count: int) -> dict[int, list]:
  """Number of a member -> the places of its examples; all are 0's of a single task."""
  found: dict[int, list[int]] = {}
  for i, example in enumerate(examples):
    number = int(example["task"]) if count > 1 else 0
    found.setdefault(number, []).append(i)
  return dict(sorted(found.items()))


def by_labels(
  examples: Sequence[Mapping[str, Any]], labels: Sequence[Labels]
) -> dict[tuple[str, ...] | None, list[int]]:
  """Labels -> places of the examples that they are for.

  Args:
    examples: with `task` where there are several members. labels: of each member.
  """
  found: dict[tuple[str, ...] | None, list[int]] = {}
  for number, places in by_number(examples, len(labels)).items():
    own = labels[number]
    found.setdefault(None if own is None else tuple(own), []).extend(places)
  return found

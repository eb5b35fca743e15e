"""The examples of a run: held in memory where they fit, streamed where they do not."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from prompt_tuning.data import suited, targets
from prompt_tuning.data.features import Layout

# A split larger than this is streamed and not held in memory.
IN_MEMORY = 400_000


def read(
  task: Any,
  vocabulary: Any,
  split: str,
  limit: int | None = None,
  numbered: bool = False,
) -> list:
  """The examples of a split in order, at most `limit`.

  Args:
    numbered: whether their targets are numbers, too, see `data.targets`.

  Raises:
    ValueError: if the split is empty, a metric cannot score it, or a target is no such
      number.
  """
  if split != "train" and not task.streams:
    task.check_metrics(split)
  if task.streams:
    found = task.dataset(vocabulary, split).as_numpy_iterator()
    examples = list(itertools.islice(found, limit))
  else:
    examples = task.tokens(vocabulary, split, limit)
  if not examples:
    raise ValueError(f"The split {split!r} of task {task.name!r} holds no examples.")
  return list(map(targets.numbered(task), examples)) if numbered else examples


@dataclasses.dataclass(frozen=True)
class Part:
  """Attributes:
  examples: of a split, in its order.
  numbers: which of the split's examples they are.
  """

  examples: Sequence[Any]
  numbers: Sequence[int]


def validation_part(
  task: Any, vocabulary: Any, limit: int | None, numbered: bool = False
) -> Part:
  """The validation split, or `limit` of its examples: the same draw in every run.

  Files are often sorted by label, so their first examples would say little. A stream
  has no order to be afraid of, and gives its first ones.
  """
  if task.streams:
    examples = read(task, vocabulary, "validation", limit, numbered)
    return Part(examples, range(len(examples)))
  examples = read(task, vocabulary, "validation", None, numbered)
  if limit is None or len(examples) <= limit:
    return Part(examples, range(len(examples)))
  drawn = np.random.default_rng(0).choice(len(examples), limit, replace=False)
  numbers = sorted(drawn.tolist())
  return Part([examples[i] for i in numbers], numbers)


def training_source(
  task: Any, vocabulary: Any, layout: Layout, seed: int, numbered: bool = False
) -> Sequence[Any] | Callable[[], Any]:
  """The training examples in memory, or a function that opens their stream."""

  def stream():
    shuffled = task.dataset(vocabulary, "train", shuffle=True, seed=seed, epochs=None)
    found = shuffled.as_numpy_iterator()
    return map(targets.numbered(task), found) if numbered else found

  if task.streams:
    return stream
  by_batch = getattr(task, "by_batch", False)
  limit = None if by_batch else IN_MEMORY + 1
  examples = read(task, vocabulary, "train", limit, numbered)
  suited.check_lengths(examples, layout, "train")
  if not numbered:
    suited.check_targets(examples, vocabulary, "train", task.labels)
  if by_batch:
    return task.ordered(examples)
  return stream if len(examples) > IN_MEMORY else examples

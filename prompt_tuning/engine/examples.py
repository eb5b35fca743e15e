"""The examples of a run: held in memory where they fit, streamed where they do not."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from prompt_tuning.data import suited
from prompt_tuning.data.features import Layout

# A split larger than this is streamed and not held in memory.
IN_MEMORY = 400_000


def read(task: Any, vocabulary: Any, split: str, limit: int | None = None) -> list:
  """The examples of a split in order, at most `limit`.

  Raises:
    ValueError: if the split is empty, or a metric cannot score it.
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
  return examples


@dataclasses.dataclass(frozen=True)
class Part:
  """Attributes:
  examples: of a split, in its order.
  numbers: which of the split's examples they are.
  """

  examples: Sequence[Any]
  numbers: Sequence[int]


def validation_part(task: Any, vocabulary: Any, limit: int | None) -> Part:
  """The validation split, or `limit` of its examples: the same draw in every run.

  Files are often sorted by label, so their first examples would say little. A stream
  has no order to be afraid of, and gives its first ones.
  """
  if task.streams:
    examples = read(task, vocabulary, "validation", limit)
    return Part(examples, range(len(examples)))
  examples = read(task, vocabulary, "validation")
  if limit is None or len(examples) <= limit:
    return Part(examples, range(len(examples)))
  drawn = np.random.default_rng(0).choice(len(examples), limit, replace=False)
  numbers = sorted(drawn.tolist())
  return Part([examples[i] for i in numbers], numbers)


def training_source(
  task: Any, vocabulary: Any, layout: Layout, seed: int
) -> Sequence[Any] | Callable[[], Any]:
  """The training examples in memory, or a function that opens their stream."""

  def stream():
    shuffled = task.dataset(vocabulary, "train", shuffle=True, seed=seed, epochs=None)
    return shuffled.as_numpy_iterator()

  if task.streams:
    return stream
  by_batch = getattr(task, "by_batch", False)
  examples = read(task, vocabulary, "train", None if by_batch else IN_MEMORY + 1)
  suited.check_lengths(examples, layout, "train")
  suited.check_targets(examples, vocabulary, "train", task.labels)
  if by_batch:
    return task.ordered(examples)
  return stream if len(examples) > IN_MEMORY else examples

"""The examples of a run: held in memory where they fit, streamed where they do not."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from prompt_tuning.data import batches as batching
from prompt_tuning.data.features import Layout

# A split larger than this is streamed and not held in memory.
IN_MEMORY = 400_000


def read(task: Any, vocabulary: Any, split: str, limit: int | None = None) -> list:
  """The examples of a split in order, at most `limit`.

  Raises:
    ValueError: if the split is empty.
  """
  if task.streams:
    found = task.dataset(vocabulary, split).as_numpy_iterator()
    examples = list(itertools.islice(found, limit))
  else:
    examples = task.tokens(vocabulary, split, limit)
  if not examples:
    raise ValueError(f"The split {split!r} of task {task.name!r} holds no examples.")
  return examples


def validation_examples(task: Any, vocabulary: Any, limit: int | None) -> list:
  """Validation examples in order; at most `limit`, the same draw in every run.

  Files are often sorted by label, so the first examples would say little. A stream has
  no order to be afraid of, and gives its first ones.
  """
  if task.streams or limit is None:
    return read(task, vocabulary, "validation", limit)
  examples = read(task, vocabulary, "validation", IN_MEMORY)
  if len(examples) <= limit:
    return examples
  numbers = np.random.default_rng(0).choice(len(examples), limit, replace=False)
  return [examples[i] for i in sorted(numbers)]


def training_source(
  task: Any, vocabulary: Any, layout: Layout, seed: int
) -> Sequence[Any] | Callable[[], Any]:
  """The training examples in memory, or a function that opens their stream."""

  def stream():
    shuffled = task.dataset(vocabulary, "train", shuffle=True, seed=seed, epochs=None)
    return shuffled.as_numpy_iterator()

  if task.streams:
    return stream
  examples = read(task, vocabulary, "train", IN_MEMORY + 1)
  if len(examples) > IN_MEMORY:
    return stream
  batching.check_lengths(examples, layout, "train")
  batching.check_targets(examples, vocabulary, "train")
  return examples

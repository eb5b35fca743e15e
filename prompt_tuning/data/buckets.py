"""Batches of a few lengths: the choice for what packing does not suit.

Each example goes to the shortest bucket that holds its inputs, and a bucket that is
full becomes a batch; a step is compiled once a bucket.
"""

import collections
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from prompt_tuning.data.features import ROUND, pad

Row = Mapping[str, np.ndarray]


def choose(lengths: Sequence[int], count: int) -> tuple[int, ...]:
  """Bucket lengths, ascending, that leave the fewest pads.

  Args:
    lengths: of all examples.
    count: how many buckets there may be.

  Returns:
    At most `count` lengths, multiples of `features.ROUND` but for the last one, which
    is the longest example's if that is shorter.

  Raises:
    ValueError: if `count` is no positive number, or there are no lengths.
  """
  if count < 1 or not len(lengths):
    raise ValueError(
      f"`BUCKETS` must be at least 1, and there must be examples; got {count} for "
      f"{len(lengths)} examples."
    )
  longest = max(lengths)
  rounded = (min(-(-length // ROUND) * ROUND, longest) for length in lengths)
  histogram = sorted(collections.Counter(rounded).items())
  sizes = [size for size, _ in histogram]
  before = list(itertools.accumulate((n for _, n in histogram), initial=0))
  # best[j]: (positions, buckets) of the examples up to sizes[j - 1].
  best: list[tuple[int, tuple[int, ...]]] = [(0, ())]
  for j in range(1, len(sizes) + 1):
    best.append((before[j] * sizes[j - 1], (sizes[j - 1],)))
  for _ in range(count - 1):
    # From the back, so that what is read has one bucket less.
    for j in range(len(sizes), 0, -1):
      for i in range(1, j):
        cost = best[i][0] + (before[j] - before[i]) * sizes[j - 1]
        if cost < best[j][0]:
          best[j] = cost, (*best[i][1], sizes[j - 1])
  return best[-1][1]


def batches(
  features: Iterable[Row], lengths: Mapping[str, int], buckets: Sequence[int], size: int
) -> Iterator[dict[str, np.ndarray]]:
  """Batches [size ...] of one bucket each, in the order in which they fill up.

  Args:
    features: unpadded model features of `features.Layout.convert`, without end.
    lengths: of padded features (`Layout.lengths`).
    buckets: lengths of `inputs` with the reserved positions, ascending.
    size: B, rows a batch.
  """
  waiting: dict[int, list[Row]] = {bucket: [] for bucket in buckets}
  for row in features:
    bucket = next(b for b in buckets if len(row["inputs"]) <= b)
    waiting[bucket].append(row)
    if len(waiting[bucket]) == size:
      fitted = {**lengths, "inputs": bucket, "prompt_index": bucket}
      rows = [pad(one, fitted) for one in waiting[bucket]]
      yield {name: np.stack([row[name] for row in rows]) for name in rows[0]}
      waiting[bucket] = []

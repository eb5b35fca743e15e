"""Batches of a few lengths: the choice for what packing does not suit.

Each example goes to the shortest bucket that holds its inputs, and a bucket that is
full becomes a batch; a step is compiled once a bucket.
"""

import bisect
import collections
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from prompt_tuning.core.format import FORM, EncoderDecoder
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
  # cost[j]: fewest positions of the examples up to sizes[j - 1]. starts[k][j]: where
  # the last bucket begins if one more is allowed; 0 where that makes it no better.
  until = np.array(before)
  cost = until * np.array([0, *sizes])
  starts = []
  for _ in range(min(count, len(sizes)) - 1):
    fewer, start = cost.copy(), np.zeros(len(cost), int)
    for j in range(2, len(cost)):
      costs = fewer[1:j] + (until[j] - until[1:j]) * sizes[j - 1]
      i = int(costs.argmin())
      if costs[i] < fewer[j]:
        cost[j], start[j] = costs[i], i + 1
    starts.append(start)
  chosen, j = [], len(sizes)
  for start in reversed(starts):
    if start[j]:
      chosen.append(sizes[j - 1])
      j = start[j]
  return (*reversed([*chosen, sizes[j - 1]]),)


def batches(
  features: Iterable[Row],
  lengths: Mapping[str, int],
  buckets: Sequence[int],
  size: int,
  form: EncoderDecoder = FORM,
) -> Iterator[dict[str, np.ndarray]]:
  """Batches [size ...] of one bucket each, in the order in which they fill up.

  Args:
    features: unpadded model features of `features.Layout.convert`, without end.
    lengths: of padded features (`Layout.lengths`).
    buckets: lengths of `inputs` with the reserved positions, ascending.
    size: B, rows a batch. form: of the backbone, which says what pads.
  """
  known = form.features.items()
  long = [name for name, one in known if one.axis == "inputs"]
  waiting: dict[int, list[Row]] = {bucket: [] for bucket in buckets}
  for row in features:
    bucket = buckets[bisect.bisect_left(buckets, len(row["inputs"]))]
    waiting[bucket].append(row)
    if len(waiting[bucket]) == size:
      fitted = {**lengths, **dict.fromkeys(long, bucket)}
      rows = [pad(one, fitted, form) for one in waiting[bucket]]
      yield {name: np.stack([row[name] for row in rows]) for name in rows[0]}
      waiting[bucket] = []

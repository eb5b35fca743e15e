"""Length buckets: which are chosen, what their batches hold, how a run uses them."""

import itertools
import time

import numpy as np
import pytest

from prompt_tuning.data import batches as batching
from prompt_tuning.data import buckets
from prompt_tuning.data.features import Layout

RANDOM = np.random.default_rng(0)
LENGTHS = [*RANDOM.integers(3, 20, 60), *RANDOM.integers(60, 90, 20), 200]


def positions(lengths, chosen):
  return sum(min(b for b in chosen if b >= length) for length in lengths)


@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_no_choice_leaves_fewer_pads(count):
  chosen = buckets.choose(LENGTHS, count)
  assert len(chosen) <= count and chosen[-1] == 200
  assert list(chosen) == sorted(set(chosen))
  sizes = sorted({min(-(-length // 16) * 16, 200) for length in LENGTHS})
  others = itertools.combinations(sizes[:-1], min(count, len(sizes)) - 1)
  best = min(positions(LENGTHS, (*other, 200)) for other in others)
  assert positions(LENGTHS, chosen) == best


def test_many_lengths_take_seconds():
  start = time.monotonic()
  lengths = range(1, 50_000)
  assert len(buckets.choose(lengths, 4)) == 4
  few = range(1, 1600)
  assert len(buckets.choose(few, 10**9)) == 100
  assert time.monotonic() - start < 10


def test_no_bucket_and_no_example_are_refused():
  for lengths, count in (([3], 0), ([], 2)):
    with pytest.raises(ValueError, match="`BUCKETS` must be at least 1"):
      buckets.choose(lengths, count)


def test_an_epoch_holds_each_example_once_in_rows_that_fit():
  examples = [
    {"inputs": np.full(n, i + 3), "targets": np.array([i + 3, 1])}
    for i, n in enumerate([4, 30, 5, 29, 6, 28, 7, 31])
  ]
  layout = Layout(31, 3, 2)
  found = batching.train_batches(examples, layout, 2, seed=1, buckets=(16, 33))
  epoch = list(itertools.islice(found, 4))
  assert (
    sorted(batch["inputs"].shape for batch in epoch) == [(2, 16)] * 2 + [(2, 33)] * 2
  )
  rows = [row for batch in epoch for row in batch["inputs"]]
  assert sorted(row[2] - 3 for row in rows) == list(range(8))
  for batch in epoch:
    assert (batch["prompt_index"][:, :3] == [0, 1, -1]).all()
    assert batch["targets"].shape == (2, 3)


def test_a_run_goes_on_where_it_stopped():
  examples = [
    {"inputs": np.full(n, i + 3), "targets": np.array([5, 1])}
    for i, n in enumerate(RANDOM.integers(3, 40, 30))
  ]

  def run(first):
    source = batching.train_batches(
      examples, Layout(40, 2), 4, 3, first_step=first, buckets=(16, 40)
    )
    return [batch["inputs"] for batch in itertools.islice(source, 12 - first)]

  for whole, resumed in zip(run(0)[5:], run(5), strict=True):
    np.testing.assert_array_equal(whole, resumed)

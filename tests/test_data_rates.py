"""How often tasks are drawn: the rules against their formulas, and runs that go on."""

import itertools

import numpy as np
import pytest

from prompt_tuning.data import batches, lists, mixtures, rates
from prompt_tuning.data.features import Layout

SIZES = {"a": 40, "b": 10, "c": 5}


def task(name, count):
  rows = [(f"{name} {i}", ("good", "bad")[i % 2]) for i in range(count)]
  return lists.Lists(rows, name=name)


def mixed(rule, cap=None, sizes=SIZES):
  return mixtures.Mixture([task(*pair) for pair in sizes.items()], rule, cap)


@pytest.mark.parametrize("t", [0.5, 1, 2, 100.0])
def test_temperature_is_a_root_of_the_size(t):
  powers = np.array([40, 10, 5]) ** (1 / t)
  wanted = powers / powers.sum()
  np.testing.assert_allclose(mixed(rates.Temperature(t)).weights(), wanted)
  capped = np.array([20, 10, 5]) ** (1 / t)
  found = mixed(rates.Temperature(t), cap=20).weights()
  np.testing.assert_allclose(found, capped / capped.sum())
  assert mixed(rates.Temperature(t)).streams


def counts(rule, cap=None, size=36, steps=10_000):
  mixture = mixed(rule, cap)
  weights = mixture.weights()
  found = [rule.counts(weights, size, 3, step) for step in range(steps)]
  return np.stack(found), np.array(weights)


@pytest.mark.parametrize("cap", [None, 8])
def test_over_many_batches_tasks_have_their_shares(cap):
  found_SK, weights_K = counts(rates.TaskSubset(), cap)
  assert (found_SK.sum(1) == 36).all()
  error_K = found_SK.mean(0) - 36 * weights_K
  assert (np.abs(error_K) < 3 * found_SK.std(0) / len(found_SK) ** 0.5).all()
  # How many tasks a batch holds: n is 2 or 3 alike, and draws may fall together.
  p = weights_K
  same_2 = (p**2).sum()
  same_3 = (p**3).sum()
  alone = (same_2 + same_3) / 2
  found = ((found_SK > 0).sum(1) == 1).mean()
  assert abs(found - alone) < 3 * (alone * (1 - alone) / len(found_SK)) ** 0.5


def test_shares_are_even_and_the_rest_goes_to_one():
  rule = rates.TaskSubset(3, 3)
  found_SK, _ = counts(rule, size=35, steps=500)
  # 35 = 3 * 11 + 2: shares of 11 for each draw, and 2 more for one of those drawn.
  for row in found_SK:
    left = sorted(row[row > 0] % 11)
    assert left[:-1] == [0] * (len(left) - 1) and left[-1] == 2
  assert {tuple(sorted(row)) for row in found_SK} >= {(11, 11, 13), (0, 11, 24)}


def test_a_batch_of_fewer_rows_than_draws_has_one_of_each():
  found_SK, weights_K = counts(rates.TaskSubset(3, 3), size=2, steps=4000)
  assert (found_SK.sum(1) == 2).all() and found_SK.max() == 2
  together = (weights_K**2).sum()
  assert abs((found_SK.max(1) == 2).mean() - together) < 0.03


def source(rule=None):
  """Tokenised examples whose only id is their number, in the order of the mixture."""
  mixture = mixed(rule or rates.TaskSubset())
  rows = [
    {"inputs": [3 + i, 1], "targets": [4, 1], "task": example["task"]}
    for i, example in enumerate(mixture.examples("train"))
  ]
  return mixture.ordered(rows)


def drawn(examples, steps, first=0, seed=0, size=8, own=None):
  layout = Layout(4, 4)
  found = batches.train_batches(examples, layout, size, seed, first, own=own)
  return [
    (batch["inputs"][:, 0].tolist(), batch["task"].tolist())
    for batch in itertools.islice(found, steps)
  ]


def test_a_run_that_goes_on_draws_what_an_unbroken_one_draws():
  examples = source()
  whole = drawn(examples, 60)
  for first in (1, 17, 59):
    assert drawn(examples, 60 - first, first) == whole[first:]
  assert drawn(examples, 60, seed=1) != whole
  second = drawn(examples, 5, own=(1, 4))
  assert second == [([i[1], i[4]], [t[1], t[4]]) for i, t in whole[:5]]


def test_each_task_goes_through_all_of_its_examples_before_any_comes_again():
  examples = source()
  seen = {k: [] for k in range(3)}
  for ids, tasks in drawn(examples, 300):
    # Rows are shuffled within a batch, so a round ends where its count does.
    for number, k in zip(ids, tasks, strict=True):
      seen[k].append(number)
  sizes = list(SIZES.values())
  for k, size in enumerate(sizes):
    totals = np.bincount(seen[k], minlength=3 + sum(sizes))
    first = 3 + sum(sizes[:k])
    own = totals[first : first + size]
    assert own.sum() == len(seen[k]) and own.max() - own.min() <= 1
    assert len(seen[k]) > 2 * size
  orders = [tasks for _, tasks in drawn(examples, 50)]
  assert any(tasks != sorted(tasks) for tasks in orders)


def test_examples_that_hold_more_are_drawn_alike():
  examples = source()
  more = examples.over([{**example, "code": np.ones(2)} for example in examples])
  assert len(more) == len(examples) == 55
  assert drawn(more, 5) == drawn(examples, 5)
  plain = mixed("proportional")
  rows = list(examples)
  assert plain.ordered(rows) is rows and not plain.by_batch


def test_a_task_without_a_training_split_is_never_drawn():
  only = lists.Lists(validation=[("x", "good")], name="only")
  mixture = mixtures.Mixture([only, task("b", 4), task("c", 4)], rates.TaskSubset(1, 2))
  rows = [
    {"inputs": [5, 1], "targets": [4, 1], "task": example["task"]}
    for example in mixture.examples("train")
  ]
  found = drawn(mixture.ordered(rows), 40)
  assert {k for _, tasks in found for k in tasks} == {1, 2}


@pytest.mark.parametrize("t", [0, -1, float("inf"), float("nan"), True, "2", None])
def test_a_temperature_is_a_number_above_0(t):
  with pytest.raises(ValueError, match="Temperature.temperature.*above 0, got"):
    rates.Temperature(t)


def test_subsets_that_cannot_be_drawn():
  for fields in ({"least": 0}, {"least": 2.0}, {"most": 0}, {"least": None}):
    with pytest.raises(ValueError, match="`TaskSubset.*whole number from 1, got"):
      rates.TaskSubset(**fields)
  with pytest.raises(ValueError, match="draws 3 to 2 of 2 tasks"):
    rates.TaskSubset(3, 2)
  with pytest.raises(ValueError, match="draws 4 to 3 of 3 tasks"):
    mixed(rates.TaskSubset(4))
  with pytest.raises(ValueError, match="draws 2 to 4 of 3 tasks"):
    mixed(rates.TaskSubset(2, 4))

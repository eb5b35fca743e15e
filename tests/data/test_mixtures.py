"""Mixtures, their rates, labels and scores."""

import pytest
from mixture_tools import read, task

from prompt_tuning.data import (
  features,
  mixtures,
)
from prompt_tuning.engine import evaluate

# --- mixtures


def test_a_mixture_numbers_its_tasks_in_order(vocabulary):
  mixed = mixtures.Mixture([task("a", 3), task("b", 2)])
  expected = [("a 0", 0), ("a 1", 0), ("a 2", 0), ("b 0", 1), ("b 1", 1)]
  assert read(mixed.dataset(vocabulary, "train")) == expected
  assert [(e["inputs"], e["task"]) for e in mixed.examples("train")] == expected
  tokens = mixed.tokens(vocabulary, "train", first=4)
  assert [int(row["task"]) for row in tokens] == [0, 0, 0, 1]
  assert {"inputs", "targets", "mark"} < set(tokens[0])


def test_only_plain_proportions_can_be_read_once():
  tasks = [task("a", 3), task("b", 2)]
  assert not mixtures.Mixture(tasks).streams
  assert mixtures.Mixture(tasks, "equal").streams
  assert mixtures.Mixture(tasks, cap=2).streams


def test_finite_epochs_hold_every_example_as_often(vocabulary):
  mixed = mixtures.Mixture([task("a", 5), task("b", 2)])
  once = [(example["inputs"], example["task"]) for example in mixed.examples("train")]
  data = mixed.dataset(vocabulary, "train", shuffle=True, seed=1, epochs=2)
  rows = read(data)
  assert sorted(rows) == sorted(once * 2) and rows != sorted(rows)
  assert read(data) == rows


@pytest.mark.parametrize(
  ("rates", "cap", "shares"),
  [
    ("equal", None, (0.5, 0.5)),
    ("proportional", None, (0.75, 0.25)),
    ("proportional", 6, (0.6, 0.4)),
    ((1, 9), None, (0.1, 0.9)),
  ],
)
def test_rates(rates, cap, shares):
  mixed = mixtures.Mixture([task("a", 12), task("b", 4)], rates, cap)
  assert mixed.weights() == pytest.approx(shares)


def test_rates_say_how_often_a_task_is_drawn(vocabulary):
  mixed = mixtures.Mixture([task("a", 2), task("b", 4)], (1, 9))

  def drawn(seed):
    data = mixed.dataset(vocabulary, "train", shuffle=True, seed=seed, epochs=None)
    return read(data, 300)

  rows = drawn(0)
  share = sum(number for _, number in rows) / 300
  assert abs(share - 0.9) < 4 * (0.1 * 0.9 / 300) ** 0.5
  assert rows == drawn(0) != drawn(1)


def test_a_split_that_one_task_lacks(vocabulary):
  mixed = mixtures.Mixture([task("a", 3, validation=None), task("b", 4)], (1, 3))
  assert mixed.splits == ("train", "validation")
  assert read(mixed.dataset(vocabulary, "validation")) == [("b 0", 1), ("b 1", 1)]
  assert mixed.weights("validation") == (1.0,)


def test_labels_are_common_or_none():
  assert mixtures.Mixture([task("a", 3), task("b", 3)]).labels == ("good", "bad")
  other = task("b", 3, ("yes", "no"))
  assert mixtures.Mixture([task("a", 3), other]).labels is None
  with pytest.raises(ValueError, match=r"labels` is \['yes'\].*in its scope"):
    mixtures.Mixture([task("a", 3), other], labels=["yes"])


def test_scores_are_each_tasks_own():
  mixed = mixtures.Mixture([task("a", 2), task("b", 4)])
  scores = mixed.score(["good", "bad", "x", "bad", "good", "bad"], "train")
  assert scores == {"a/accuracy": 100.0, "b/accuracy": 75.0, "mean": 87.5}
  some = mixed.score(["good", "bad", "x"], "train", numbers=range(3))
  assert some == {"a/accuracy": 100.0, "b/accuracy": 0.0, "mean": 50.0}
  one = mixed.score(["bad"], "train", numbers=range(1))
  assert one == {"a/accuracy": 0.0, "mean": 0.0}
  with pytest.raises(ValueError, match="6 targets.*got 2"):
    mixed.score(["good", "bad"], "train")


def test_build_gives_a_seqio_mixture(vocabulary):
  built = mixtures.Mixture([task("a", 3), task("b", 1)], name="both").build(vocabulary)
  assert {t.name: built.get_rate(t) for t in built.tasks} == {"a": 0.75, "b": 0.25}
  (first, *_) = built.get_dataset(None, "train", num_epochs=1).as_numpy_iterator()
  assert set(first) == {"inputs", "targets"}


def test_bad_mixtures_are_refused():
  with pytest.raises(ValueError, match="different names, got.*'a', 'a'"):
    mixtures.Mixture([task("a", 3), task("a", 3)])
  with pytest.raises(ValueError, match="different names"):
    mixtures.Mixture([])
  odd = float("inf"), float("nan"), -1, True, "1", None, [1], 1e308
  pairs = [(1, rate) for rate in odd[:-1]] + [(odd[-1], odd[-1])]
  for rates in ((1,), (1, 0), "evenly", *pairs):
    with pytest.raises(ValueError, match="Mixture.rates.*2 numbers above 0"):
      mixtures.Mixture([task("a", 3), task("b", 3)], rates)
  with pytest.raises(ValueError, match="Mixture.cap"):
    mixtures.Mixture([task("a", 3)], "equal", cap=3)


def test_members_are_evaluated_apart(vocabulary, monkeypatch):
  """Losses of each, and answers among the labels of each."""
  mixed = mixtures.Mixture([task("a", 3), task("b", 4, ("yes", "no"))])
  rows = mixed.tokens(vocabulary, "train")
  asked = []

  def predictor(model, vocabulary, labels, output, place):
    def run(params, batch, numbers):
      asked.append((labels, numbers[: len(batch["inputs"])].tolist()))
      return [{"prediction": labels[0]} for _ in batch["inputs"]]

    return run

  def term(model, params, batch):
    """A loss of the task's number for each row that has a target."""
    real = (batch["targets"] > 0).any(1)
    return (batch["task"] * real).sum(), real.sum()

  monkeypatch.setattr(evaluate, "predictor", predictor)
  monkeypatch.setattr(
    evaluate.Evaluator, "_means", lambda self, t: {"loss": t[0] / t[1]}
  )
  made = evaluate.Evaluator(
    None, None, features.Layout(8, 4), vocabulary, mixed, object(), 4
  )
  made.loss_step = lambda params, batch: term(None, params, batch)
  found = made.scores(None, rows, split="train")
  assert found["loss"] == pytest.approx(4 / 7)
  assert (found["a/loss"], found["b/loss"]) == (0, 1)
  assert found["a/accuracy"] == pytest.approx(200 / 3) and found["b/accuracy"] == 50
  assert found["mean"] == pytest.approx((200 / 3 + 50) / 2)
  numbers = {labels: numbers for labels, numbers in asked}
  assert sorted(set(numbers["good", "bad"])) == [0, 1, 2]
  assert sorted(set(numbers["yes", "no"])) == [3, 4, 5, 6]

"""The loop: what happens when, and how it stops."""

import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clu import metrics as clu_metrics
from engine_tools import Recorder

from prompt_tuning.engine import (
  loop,
  optimizer,
  state,
)


def plain_run(plan, scores=None, begin=0, best=None, losses=None, data=99, save=None):
  """A run whose step only counts: what was evaluated, kept, saved and said."""
  seen = types.SimpleNamespace(evaluated=[], kept=[], saved=[], recorder=Recorder())
  average = clu_metrics.Average

  def count(now, frozen, batch, key):
    loss = jnp.float32(batch["loss"][0])
    bad = jnp.float32(~np.isfinite(loss))
    metrics = {"loss": average(loss, 1), "bad_steps": average(bad, 1)}
    return now.replace(step=now.step + 1), metrics

  def evaluate_state(now):
    seen.evaluated.append(int(now.step))
    return scores[len(seen.evaluated) - 1]

  def save_state(now):
    seen.saved.append(int(now.step))
    if save is not None:
      save(now)

  losses = losses or {}
  batches = (
    {"loss": np.full(1, losses.get(number, float(number)), np.float32)}
    for number in range(begin + 1, data + 1)
  )
  seen.state, seen.best = loop.run(
    count,
    state.TrainState(jnp.int32(begin), {}, {}),
    {},
    batches,
    jax.random.key(0),
    plan,
    dict,
    seen.recorder,
    optimizer.constant(0.25),
    evaluate=evaluate_state if scores else None,
    save=save_state,
    keep=lambda now, found: seen.kept.append((int(now.step), found)),
    best=best,
  )
  return seen


def test_what_is_due_when():
  scores = [{"loss": 3.0}, {"loss": 2.0}, {"loss": 1.0}]
  seen = plain_run(loop.Plan(7, 2, 3, 4), scores)
  assert seen.evaluated == [3, 6, 7]
  assert seen.saved == [4, 7]
  trains = {n: values for n, split, values in seen.recorder.lines if split == "train"}
  # A line is the mean since the line before: losses are their steps' numbers.
  losses = {n: values["loss"] for n, values in trains.items()}
  assert losses == {2: 1.5, 3: 3.0, 4: 4.0, 6: 5.5, 7: 7.0}
  assert all(values["learning_rate"] == 0.25 for values in trains.values())
  assert "bad_steps" not in trains[2]
  assert seen.recorder.steps == [1, 2, 3, 4, 5, 6, 7]
  only_at_the_end = plain_run(loop.Plan(3, 0, 0, 0), [{"loss": 1.0}])
  assert (only_at_the_end.evaluated, only_at_the_end.saved) == ([3], [3])


def test_the_best_by_metric_is_kept():
  values = [50.0, 70.0, float("nan"), 70.0, 60.0]
  scores = [{"accuracy": value, "loss": 9.0 - i} for i, value in enumerate(values)]
  by_accuracy = plain_run(loop.Plan(5, 0, 1, 0, "accuracy"), scores)
  assert [number for number, _ in by_accuracy.kept] == [1, 2]
  assert by_accuracy.best == loop.Best(2, scores[1])
  by_loss = plain_run(loop.Plan(5, 0, 1, 0, "loss"), scores)
  assert [number for number, _ in by_loss.kept] == [1, 2, 3, 4, 5]
  resumed = plain_run(
    loop.Plan(5, 0, 1, 0, "accuracy"), scores, 2, loop.Best(1, {"accuracy": 65.0})
  )
  assert [number for number, _ in resumed.kept] == [4]
  # A score that is never given (its metric fails, say) makes no step the best.
  assert not plain_run(loop.Plan(5, 0, 1, 0, "f1"), scores).kept


def test_patience():
  scores = [{"loss": value} for value in (3.0, 2.0, 2.5, 2.1, 1.0)]
  seen = plain_run(loop.Plan(20, 0, 2, 5, patience=2), scores)
  assert seen.evaluated == [2, 4, 6, 8]
  assert int(seen.state.step) == 8
  assert seen.best == loop.Best(4, scores[1])
  assert seen.recorder.said == ["Stopped at step 8: no better loss since step 4."]
  # The same command again finds the run finished.
  again = plain_run(loop.Plan(20, 0, 2, 5, patience=2), scores, 8, seen.best)
  assert (again.evaluated, int(again.state.step)) == ([], 8)
  assert "best is step 4" in again.recorder.said[0]
  # Enough patience.
  assert plain_run(loop.Plan(10, 0, 2, 0, patience=3), scores).best.step == 10


@pytest.mark.parametrize("name", ["steps", "log_period", "patience"])
def test_wrong_plans_are_refused(name):
  with pytest.raises(ValueError, match=f"`{name}` must not be negative, got -1"):
    loop.Plan(**{"steps": 1, name: -1})


def test_divergence_stops_before_anything_is_saved():
  with pytest.raises(loop.DivergedError) as caught:
    plain_run(loop.Plan(9, 3, 0, 2), losses={5: np.nan}, save=SAVED.append)
  message = str(caught.value)
  assert "at or before step 6" in message
  assert "learning rate 0.25" in message and "LEARNING_RATE" in message
  assert [int(now.step) for now in SAVED] == [2, 4]


SAVED = []


def test_data_that_end_too_early():
  with pytest.raises(ValueError, match="training data ended at step 3 of 5"):
    plain_run(loop.Plan(5), data=3)


def test_a_failed_save_ends_the_run_and_its_thread():
  def full(now):
    raise OSError(28, "No space left on device")

  before = threading.active_count()
  with pytest.raises(OSError, match="No space left"):
    plain_run(loop.Plan(5, 0, 0, 2), save=full)
  assert threading.active_count() == before

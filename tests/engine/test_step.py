"""The training step on a toy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clu import metrics as clu_metrics
from engine_tools import B, Toy, near, same

from prompt_tuning.core import trainable as branches
from prompt_tuning.engine import (
  optimizer,
  state,
  step,
)
from prompt_tuning.objectives.cross_entropy import CrossEntropy


def test_microbatches_add_up_to_the_whole_batch(params, batch):
  trains, frozen = branches.split(params, ("prompt",))
  whole, two, four = (
    jax.jit(step.gradients(Toy(), CrossEntropy(), parts))(trains, frozen, batch, None)
    for parts in (1, 2, 4)
  )
  near(two, whole)
  near(four, whole)


def stepper(params, schedule=None, **settings):
  """(compiled step, first state, frozen)."""
  trains, frozen = branches.split(params, ("prompt",))
  schedule = schedule or optimizer.constant(0.3)
  transform = optimizer.Optimizer(optimizer.Adafactor(), schedule).build(trains)
  run = step.train_step(Toy(), CrossEntropy(), transform, **settings)
  return jax.jit(run), state.create(trains, transform), frozen


def test_a_step_moves_what_trains_and_counts(params, batch):
  run, begin, frozen = stepper(params, dropout=False)
  after, metrics = run(begin, frozen, batch, jax.random.key(0))
  assert int(after.step) == 1
  moved_by = after.trainable["prompt"]["bias"] - params["prompt"]["bias"]
  assert (np.abs(moved_by) > 0.01).all()
  # clu's metrics weigh batches by their targets.
  fewer = {**batch, "targets": np.where(np.arange(B)[:, None] < 1, batch["targets"], 0)}
  _, more = run(after, frozen, fewer, jax.random.key(0))
  assert all(isinstance(m, clu_metrics.Average) for m in more.values())
  both = step.merge_metrics(step.merge_metrics(None, metrics), more)
  left, right = float(metrics["loss"].compute()), float(more["loss"].compute())
  near(both["loss"].compute(), (12 * left + 5 * right) / 17)
  near(
    both["gradient_norm"].compute(),
    (metrics["gradient_norm"].compute() + more["gradient_norm"].compute()) / 2,
  )
  assert float(both["bad_steps"].compute()) == 0


def test_dropout_is_folded_from_the_step(params, batch):
  run, begin, frozen = stepper(params, dropout=True)
  key = jax.random.key(5)
  first, loss = run(begin, frozen, batch, key)
  again, same_loss = run(begin, frozen, batch, key)
  same(first.trainable, again.trainable)
  later = begin.replace(step=jnp.int32(3))
  assert float(run(later, frozen, batch, key)[1]["loss"].compute()) != pytest.approx(
    float(loss["loss"].compute())
  )
  still, _, _ = stepper(params, dropout=False)
  plain = still(begin, frozen, batch, key)[1]["loss"].compute()
  assert float(plain) != pytest.approx(float(same_loss["loss"].compute()))


@pytest.mark.parametrize("fault", ["loss", "rate"])
def test_a_bad_step_changes_nothing(params, batch, fault):
  schedule = optimizer.constant(1e38) if fault == "rate" else None
  if fault == "loss":
    params["backbone"]["table"] = params["backbone"]["table"].at[0, 0].set(np.inf)
    batch["decoder_inputs"][0, 0] = 0
  run, begin, frozen = stepper(params, schedule, dropout=False)
  after, metrics = run(begin, frozen, batch, jax.random.key(0))
  same((after.trainable, after.optimizer), (begin.trainable, begin.optimizer))
  assert int(after.step) == 1
  assert float(metrics["bad_steps"].compute()) == 1

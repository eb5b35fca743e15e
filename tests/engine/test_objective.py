"""The objective, against numpy."""

import jax
import method_tools
import numpy as np
import pytest
from engine_tools import B, Toy, U, V, near, toy_losses

from prompt_tuning.core.forward import Forward
from prompt_tuning.engine import (
  step,
)
from prompt_tuning.objectives import objective as objectives
from prompt_tuning.objectives.cross_entropy import CrossEntropy, token_losses
from prompt_tuning.objectives.objective import Weighted


@pytest.mark.parametrize("few", [2])
def test_logits_made_in_parts_change_nothing(few):
  case = method_tools.case("prompt_tuning")
  batch, (trains, frozen) = case.batch(), case.split
  rows, wide = batch["targets"].shape
  found = {}
  for most in (2**25, few * rows * method_tools.V):
    objective = CrossEntropy(0.01, 0.1, most)
    run = step.gradients(case.model, objective, 1)
    program = jax.make_jaxpr(run)(trains, frozen, batch, None)
    # Half of the logits or more are nowhere in the program.
    whole = f"[{rows},{wide},{method_tools.V}]"
    assert (whole in str(program)) == (most == 2**25)
    found[most] = jax.jit(run)(trains, frozen, batch, None)
  near(*found.values(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_token_losses(z_loss, smoothing):
  logits = np.random.default_rng(1).normal(size=(2, 3, V))
  targets = np.random.default_rng(2).integers(0, V, (2, 3))
  z = np.exp(logits).sum(-1)
  expected = np.zeros((2, 3))
  for b, u in np.ndindex(2, 3):
    wish = np.full(V, smoothing / (V - 1))
    wish[targets[b, u]] = 1 - smoothing
    log_p = logits[b, u] - np.log(z[b, u])
    entropy = -sum(w * np.log(w) for w in wish if w > 0)
    expected[b, u] = -(wish * log_p).sum() - entropy + z_loss * np.log(z[b, u]) ** 2
  compiled = jax.jit(token_losses, static_argnums=(2, 3))
  loss, plain = compiled(logits, targets, z_loss, smoothing)
  near(loss, expected, 1e-4)
  chosen = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
  near(plain, np.log(z) - chosen, 1e-4)


def test_the_objective_counts_real_targets_alone(params, batch):
  smooth = CrossEntropy(z_loss=0.1)
  both = Weighted([CrossEntropy(), smooth], [1.0, 0.5])

  @jax.jit
  def terms(batch):
    found = objectives.terms(both, Forward(Toy(), params, batch))
    return *found, objectives.mean(both, found)

  plain, smoothed, weighted = terms(batch)
  real = batch["targets"] > 0
  assert float(plain.weight) == real.sum() == 12
  logits, losses = toy_losses(params, batch["decoder_inputs"], batch["targets"])
  near(plain.total, losses[real].sum(), 1e-4)
  right = (logits.argmax(-1) == batch["targets"])[real].sum()
  near(plain.metrics["token_accuracy"], (right, 12.0))
  near(weighted, (plain.total + 0.5 * smoothed.total) / 12)
  empty, _, mean = terms({**batch, "targets": np.zeros((B, U), np.int32)})
  assert (float(empty.total), float(empty.weight), float(mean)) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("bad", [{"z_loss": -1}, {"label_smoothing": 1.0}])
def test_wrong_objectives_are_refused(bad):
  with pytest.raises(ValueError, match=f"CrossEntropy.{next(iter(bad))}"):
    CrossEntropy(**bad)
  with pytest.raises(ValueError, match="one weight for each"):
    Weighted([CrossEntropy()], [])

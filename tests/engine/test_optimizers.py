"""Optimisers: what they do to gradients, and what they keep."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from engine_tools import near

from prompt_tuning.engine import (
  optimizer,
)

PROMPT = {"prompt": {"table": jnp.full((128, 256), 0.5)}}


def moved(rule, tree, gradients):
  """The tree after steps with given gradients."""
  transform = optimizer.Optimizer(rule, optimizer.constant(0.3)).build(tree)

  @jax.jit
  def step(tree, slots, gradient):
    updates, slots = transform.update(gradient, slots, tree)
    return optax.apply_updates(tree, updates), slots

  slots = transform.init(tree)
  for gradient in gradients:
    tree, slots = step(tree, slots, gradient)
  return tree


def test_adafactor_keeps_a_second_moment_for_every_number():
  def shapes(rule):
    build = optimizer.Optimizer(rule, optimizer.constant(0.3)).build(PROMPT)
    return {leaf.shape for leaf in jax.tree.leaves(build.init(PROMPT))}

  assert (128, 256) in shapes(optimizer.Adafactor())
  assert not {(128,), (256,)} & shapes(optimizer.Adafactor())
  assert {(128,), (256,)} <= shapes(optimizer.Adafactor(factored=True))
  assert (128, 256) not in shapes(optimizer.Adafactor(factored=True))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_adafactors_first_update_has_the_size_of_the_rate(scale):
  normal = np.random.default_rng(1).normal(size=(9, 4)).astype(np.float32)
  gradient = {"prompt": {"table": scale * normal}}
  tree = {"prompt": {"table": jnp.zeros((9, 4))}}
  after = moved(optimizer.Adafactor(), tree, [gradient])["prompt"]["table"]
  near(np.sqrt(np.mean(np.asarray(after) ** 2)), 0.3)
  near(after, -0.3 * np.sign(normal))
  scaled = moved(optimizer.Adafactor(parameter_scale=True), PROMPT, [PROMPT])
  near(scaled["prompt"]["table"], PROMPT["prompt"]["table"] * 0.7)


def test_adafactor_against_its_equations():
  """Shazeer & Stern, 2018, algorithm 4 without factors: decay 1 - t^-0.8, clipping."""
  draw = np.random.default_rng(3)
  gradients = [draw.normal(size=(3, 2)) * size for size in (1.0, 5.0, 0.1)]
  weights, moment = np.ones((3, 2)), np.zeros((3, 2))
  for t, gradient in enumerate(gradients, 1):
    decay = 1 - t**-0.8
    moment = decay * moment + (1 - decay) * gradient**2
    update = gradient / np.sqrt(moment)
    update /= max(1.0, np.sqrt((update**2).mean()))
    weights = weights - 0.3 * update - 0.01 * weights
  tree = {"prompt": jnp.ones((3, 2))}
  rule = optimizer.Adafactor(weight_decay=0.01)
  steps = [{"prompt": jnp.asarray(g, jnp.float32)} for g in gradients]
  near(moved(rule, tree, steps)["prompt"], weights, 1e-4)


def test_weight_decay_is_of_the_rate_in_adamw_alone():
  still = jax.tree.map(jnp.zeros_like, PROMPT)
  after = moved(optimizer.Adafactor(weight_decay=0.1), PROMPT, [still])
  near(after["prompt"]["table"], PROMPT["prompt"]["table"] * 0.9)
  after = moved(optimizer.AdamW(weight_decay=0.1), PROMPT, [still])
  near(after["prompt"]["table"], PROMPT["prompt"]["table"] * (1 - 0.3 * 0.1))


def test_rates_of_branches():
  tree = {"prompt": {"a": {"x": jnp.zeros(3)}, "ab": jnp.zeros(3), "c": jnp.zeros(3)}}
  ones = jax.tree.map(jnp.ones_like, tree)
  rates = {"prompt": 0.1, "prompt/a": 0.2, "prompt/c": 0.0}
  rule = optimizer.Optimizer(
    optimizer.Adafactor(),
    optimizer.constant(0.3),
    branch_schedules={k: optimizer.constant(rate) for k, rate in rates.items()},
  )
  transform = rule.build(tree)
  updates, slots = transform.update(ones, transform.init(tree), tree)
  near(updates["prompt"]["a"]["x"], np.full(3, -0.2))
  near(updates["prompt"]["ab"], np.full(3, -0.1))
  near(updates["prompt"]["c"], np.zeros(3))
  only = dataclasses.replace(rule, branch_schedules={"prompt/a": rule.schedule})
  only = dataclasses.replace(only, schedule=optimizer.constant(0.0)).build(tree)
  updates, _ = only.update(ones, only.init(tree), tree)
  near(updates["prompt"]["a"]["x"], np.full(3, -0.3))
  near(updates["prompt"]["ab"], np.zeros(3))
  wrong = dataclasses.replace(rule, branch_schedules={"prompt/b": rule.schedule})
  with pytest.raises(ValueError, match="'prompt/b', which holds no parameter"):
    wrong.build(tree)


def test_clipping_is_by_the_global_norm():
  tree = {"prompt": {"x": jnp.zeros(1), "y": jnp.zeros(1)}}
  gradient = {"prompt": {"x": jnp.array([3.0]), "y": jnp.array([4.0])}}
  clipped = optimizer.Optimizer(optax.sgd, optimizer.constant(0.5), clip_norm=1.0)
  transform = clipped.build(tree)
  updates, _ = transform.update(gradient, transform.init(tree), tree)
  near(updates, {"prompt": {"x": np.array([-0.3]), "y": np.array([-0.4])}})


@pytest.mark.parametrize(
  ("schedule", "expected"),
  [
    (optimizer.constant(2.0), {0: 2.0, 9: 2.0}),
    (optimizer.warmup_linear(2.0, 4, 12), {0: 0.0, 2: 1.0, 4: 2.0, 8: 1.0, 12: 0.0}),
    (optimizer.warmup_cosine(2.0, 4, 12), {0: 0.0, 2: 1.0, 4: 2.0, 8: 1.0, 12: 0.0}),
    (optimizer.inverse_square_root(2.0, 4), {0: 2.0, 4: 2.0, 16: 1.0}),
  ],
)
def test_schedules(schedule, expected):
  found = {number: float(schedule(number)) for number in expected}
  assert found == pytest.approx(expected, abs=1e-6)

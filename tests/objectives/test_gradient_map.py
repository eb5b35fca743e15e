"""The learned map of inner gradients: its formula, its start, its own gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import method_tools as tools
import numpy as np
import pytest

from prompt_tuning.core import trainable as branches
from prompt_tuning.core.forward import Forward
from prompt_tuning.objectives import objective as objectives
from prompt_tuning.objectives.gradient_map import MappedTwoLevel, Psi
from prompt_tuning.objectives.two_level import TwoLevel

H, R = tools.H, 5


def drawn(start, rank=R, seed=0):
  psi = Psi(rank, start)
  shapes = jnp.zeros((1, H)), jnp.zeros(H)
  return psi, psi.init(jax.random.key(seed), *shapes)


def relu(x):
  return np.maximum(x, 0)


def test_formula():
  psi, held = drawn("published")
  p = {name: np.asarray(x, np.float64) for name, x in branches.flatten(held).items()}
  p = {name.removeprefix("params/"): x + 0.1 for name, x in p.items()}
  held = branches.unflatten({f"params/{n}": jnp.float32(x) for n, x in p.items()})
  rng = np.random.default_rng(1)
  x, state = rng.normal(size=(3, H)), rng.normal(size=H)
  h = x
  for i in range(2):
    h = relu(h @ p[f"down_{i}"] @ p[f"up_{i}"] + p[f"bias_{i}"])
  g = h * np.linalg.norm(x, axis=1, keepdims=True)
  g = g / np.linalg.norm(h, axis=1, keepdims=True)
  y = relu(state @ p["gate_hidden/kernel"] + p["gate_hidden/bias"])
  w = 1 / (1 + np.exp(-(y @ p["gate/kernel"] + p["gate/bias"])))
  found = psi.apply(held, jnp.float32(x), jnp.float32(state))
  tools.assert_close(found, (1 - w) * x + w * g, 1e-5)


@pytest.mark.parametrize("rank", [R, H])
def test_count(rank):
  """2 (2 H R + H) + 24 H + 24 + 25, whatever the length of the prompt."""
  _, held = drawn("published", rank)
  assert branches.count(held) == 2 * (2 * H * rank + H) + 24 * H + 24 + 25


def test_rows_keep_their_length_and_zeros_stay_finite():
  psi, held = drawn("published")
  closed = branches.flatten(held)
  closed["params/gate/bias"] += 1e4
  x = jnp.asarray(np.random.default_rng(2).normal(size=(4, H)), jnp.float32)
  x = x.at[1].set(0)
  apply = jax.jit(lambda x: psi.apply(branches.unflatten(closed), x, jnp.ones(H)))
  found = apply(x)
  lengths = [np.linalg.norm(one, axis=1) for one in (found, x)]
  tools.assert_close(*lengths)
  slope = jax.grad(lambda x: apply(x).sum())(x)
  assert np.isfinite(slope).all()


def test_identity_begins_as_the_gradient():
  psi, held = drawn("identity")
  x = jnp.asarray(np.random.default_rng(3).normal(size=(4, H)), jnp.float32)
  tools.assert_close(psi.apply(held, x, jnp.ones(H)), x)


@pytest.fixture(scope="module")
def case():
  return tools.case("prompt_tuning", PROMPT_LENGTH=3)


def outer(case, wish, weights):
  batch = case.batch(tools.examples(count=8))
  params = {**case.params, "objective": {"gradient_map": weights}}
  (term,) = objectives.terms(wish, Forward(case.model, params, batch))
  return term.total / term.weight


@pytest.mark.slow
def test_the_outer_loss_reaches_the_map(case):
  """Against finite differences; with the gate shut it is plain two levels."""
  wish = MappedTwoLevel(episodes=2, rate=3.0, rank=R)
  weights = wish.init(jax.random.key(0), case.model, case.params)
  run = jax.jit(lambda weights: outer(case, wish, weights))
  change = jax.jit(jax.grad(lambda weights: outer(case, wish, weights)))(weights)
  along = jax.tree.map(lambda g: g / jnp.maximum(jnp.abs(g).max(), 1e-9), change)
  size = 1e-3
  near = [
    float(run(jax.tree.map(lambda x, d, s=sign: x + s * size * d, weights, along)))
    for sign in (1, -1)
  ]
  wanted = sum(
    float((g * d).sum())
    for g, d in zip(jax.tree.leaves(change), jax.tree.leaves(along), strict=True)
  )
  assert wanted > 0
  assert (near[0] - near[1]) / (2 * size) == pytest.approx(wanted, rel=0.05)
  shut = branches.flatten(weights)
  shut["gate/bias"] = shut["gate/bias"] - 1e4
  plain = outer(case, TwoLevel(episodes=2, rate=3.0), {})
  assert float(run(branches.unflatten(shut))) == pytest.approx(float(plain), rel=1e-5)
  assert float(run(weights)) != pytest.approx(float(plain), rel=1e-4)


def test_nothing_to_map_is_said(case):
  wish = MappedTwoLevel()
  narrow = {**case.params, "prompt": {"x": jnp.zeros((3, H + 1))}}
  with pytest.raises(ValueError, match=r"tables \[P 16\].*holds none"):
    wish.init(jax.random.key(0), case.model, narrow)
  with pytest.raises(ValueError, match="`MappedTwoLevel.start` is 'none'"):
    dataclasses.replace(wish, start="none")

"""Few queries read the encoder without its keys and values: same meaning, less work."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import method_tools as tools
import numpy as np
import pytest

from prompt_tuning.backbones.common import int8
from prompt_tuning.backbones.common.attend import attend, attend_folded
from prompt_tuning.backbones.t5.attention import Attention
from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.backbones.t5.config import T5Config
from prompt_tuning.engine import step
from prompt_tuning.objectives.cross_entropy import CrossEntropy

B, Q, T, N, D, H = 2, 3, 24, 2, 16, 12
CONFIG = T5Config(61, H, N, D, 24, 1, 1, dropout_rate=0.2)


def arrays():
  """Queries, what they read, the two kernels, a bias, and a mask of dropout."""
  rng = np.random.default_rng(0)
  shapes = (B, Q, N, D), (B, T, H), (H, N * D), (H, N * D)
  drawn = [jnp.asarray(rng.normal(size=shape), jnp.float32) / 2 for shape in shapes]
  bias = rng.normal(size=(B, N, Q, T)) - 1e10 * (rng.random((B, 1, Q, T)) < 0.3)
  keep = rng.random((B, N, 1, T)) < 0.8
  return drawn, jnp.asarray(bias, jnp.float32), jnp.asarray(keep / 0.8, jnp.float32)


def with_keys_and_values(query, source, key, value, bias, drop):
  made = [(source @ kernel).reshape(B, T, N, D) for kernel in (key, value)]
  return attend(query, *made, bias, drop)


@pytest.mark.parametrize("dropped", [False, True])
def test_it_is_attention_over_keys_and_values_and_so_are_its_gradients(dropped):
  drawn, bias, keep = arrays()
  pull = jnp.asarray(np.random.default_rng(1).normal(size=(B, Q, N, D)))

  def total(function, *args):
    drop = (lambda weights: weights * keep) if dropped else None
    return jnp.sum(function(*args, bias, drop) * pull)

  found, wanted = (
    jax.value_and_grad(functools.partial(total, function), (0, 1, 2, 3))(*drawn)
    for function in (attend_folded, with_keys_and_values)
  )
  assert abs(float(wanted[0])) > 0.1
  jax.tree.map(tools.assert_close, found, wanted)


def module(queries):
  """(reading, reading through keys and values, parameters) of a module."""
  rng = np.random.default_rng(2)
  rows, source = (
    jnp.asarray(rng.normal(size=(B, size, H)), jnp.float32) for size in (queries, T)
  )
  attention = Attention(CONFIG)
  bias = jnp.zeros((B, 1, 1, T))

  def read(params, train=False):
    rngs = {"dropout": jax.random.key(3)}
    args = rows, source, bias, train
    return attention.apply(params, *args, method="read", rngs=rngs)

  def through_keys(params, train=False):
    def both(module, *args):
      return module(rows, module.keys_values(source), bias, train)

    return attention.apply(params, method=both, rngs={"dropout": jax.random.key(3)})

  given = jax.random.key(0), rows, source, bias, False
  return read, through_keys, attention.init(*given, method="read")


def products(run, params):
  """Lines of a traced program that are products."""
  program = str(jax.make_jaxpr(run)(params))
  return [line for line in program.splitlines() if "dot_general" in line]


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("queries, folds", [(Q, True), (T, False)])
def test_the_shorter_way_is_taken(queries, folds, train):
  read, through_keys, params = module(queries)
  keys = f"f32[{B},{T},{N * D}]"
  assert folds != any(keys in line for line in products(read, params))
  assert any(keys in line for line in products(through_keys, params))
  tools.assert_close(read(params, train), through_keys(params, train))


def test_it_takes_at_most_half_of_the_arithmetic():
  read, through_keys, params = module(Q)
  cost = [
    jax.jit(run).lower(params).compile().cost_analysis()["flops"]
    for run in (read, through_keys)
  ]
  # The projections of the queries and of the output are in both.
  both = 2 * 2 * B * Q * H * N * D
  assert cost[0] - both < 0.6 * (cost[1] - both)


def test_int8_weights_are_read_the_usual_way():
  read, through_keys, params = module(Q)
  stored = {"params": int8.tree(params["params"])}
  assert (read(stored) == through_keys(stored)).all()


@pytest.mark.parametrize("name", ["prompt_tuning", "full_fine_tuning"])
def test_a_packed_step_is_the_same(name):
  case = tools.case(name)
  model, batch, _ = case.packed()
  gradient = step.gradients(model, CrossEntropy(), 1)

  def run(always):
    # A new function each time: a patch must not find a program made without it.
    with tools.folding(always):
      return jax.jit(lambda *args: gradient(*args))(*case.split, batch, None)

  (found, (term,)), (usual, (usual_term,)) = run(True), run(False)
  tools.assert_close(term.total, usual_term.total)
  assert any(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(usual))
  jax.tree.map(tools.assert_close, found, usual)


@pytest.mark.parametrize("scan, remat", [(True, "dots"), (False, "full")])
def test_scanned_and_rematerialised_layers_fold(scan, remat):
  config = dataclasses.replace(
    CONFIG, dropout_rate=0.0, scan_layers=scan, remat_policy=remat
  )
  backbone = T5(config)
  params = tools.random_params(backbone.shapes())
  rng = np.random.default_rng(4)
  inputs, targets = (jnp.asarray(rng.integers(3, 61, (B, n))) for n in (T, Q))
  batch = {"inputs": inputs, "decoder_inputs": targets}

  def run(always):
    def loss(params):
      encoded, mask = backbone.encode(params, batch)
      return jnp.square(backbone.decode(params, batch, encoded, mask)).mean()

    with tools.folding(always):
      return jax.jit(jax.value_and_grad(loss))(params)

  jax.tree.map(tools.assert_close, run(True), run(False))

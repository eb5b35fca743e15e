"""Words that change a prompt, or draw it, against their equations in numpy."""

import math

import jax
import jax.numpy as jnp
import method_tools as tools
import numpy as np
import pytest

from prompt_tuning.conditions.self_attention import SelfAttentionMean
from prompt_tuning.conditions.tokens import Tokens
from prompt_tuning.core.context import Code, Context, Spec
from prompt_tuning.core.prompt import Drawn
from prompt_tuning.inits import saved, uniform
from prompt_tuning.parameterisers.attended import (
  GELU_ABOVE,
  GELU_BELOW,
  MakeAttended,
  rational,
)
from prompt_tuning.parameterisers.first_layer import FirstTables
from prompt_tuning.parameterisers.low_rank import LowRank
from prompt_tuning.parameterisers.low_rank_gate import LowRankGate
from prompt_tuning.parameterisers.mixture import Mixture
from prompt_tuning.parameterisers.random_projection import RandomProjection, fixed
from prompt_tuning.parameterisers.relu_mlp import ReluMlp
from prompt_tuning.parameterisers.retrieve import Retrieve
from prompt_tuning.parameterisers.rows import Rows
from prompt_tuning.transforms.instance_gate import InstanceGate
from prompt_tuning.transforms.nearest_token import NearestToken, nearest
from prompt_tuning.transforms.rows_lstm import RowsLstm
from prompt_tuning.transforms.rows_mlp import RowsMlp
from prompt_tuning.transforms.scale import Scale
from prompt_tuning.transforms.shared_shift import SharedShift

R, Q, C, V, P = 3, 6, 8, 40, 4
LENGTHS = (6, 2, 4)
GOLDEN = [0.45123515, 1.95345092, -0.51623946]
RNG = np.random.default_rng(0)
VALUES = RNG.normal(size=(R, Q, C)).astype(np.float32)
MASK = np.arange(Q)[None] < np.array(LENGTHS)[:, None]
CODE = Code(jnp.asarray(np.where(MASK[..., None], VALUES, 0)), jnp.asarray(MASK))
TABLE = RNG.normal(size=(V, C)).astype(np.float32)
SPEC = Spec(C, V, {}, TABLE)
PROMPT = RNG.normal(size=(1, 1, P, C)).astype(np.float32)
DRAWN = Drawn(jnp.asarray(PROMPT))
MEAN = np.stack([x[:n].mean(0) for x, n in zip(VALUES, LENGTHS, strict=True)])


def run(word, *given, train=False):
  """The prompt that a word makes, and its parameters, drawn at random."""
  shapes = jax.eval_shape(lambda key: word.init(key, *given), jax.random.key(0))
  params = tools.random_params(shapes.get("params", {}), 0.5)
  found = word.apply({"params": params}, *given, train=train)
  return np.asarray(found.prompt, np.float64), jax.tree.map(np.array, params)


def changed(word, code=None):
  return run(word, DRAWN, code, SPEC)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def softmax(x, axis=-1):
  e = np.exp(x - x.max(axis, keepdims=True))
  return e / e.sum(axis, keepdims=True)


def affine(params, name, x):
  return x @ params[f"{name}_kernel"] + params[f"{name}_bias"]


def test_scales():
  table = PROMPT[0, 0]
  for axis, shape in {"width": (C,), "row": (P,), "scalar": ()}.items():
    found, params = changed(Scale(axis))
    assert params[axis].shape == (1, *shape)
    factors = params[axis][0]
    tools.assert_close(
      found[0, 0], table * (factors[:, None] if axis == "row" else factors)
    )
  found, params = changed(Scale("outer"))
  tools.assert_close(
    found[0, 0], table * np.outer(params["row"][0], params["width"][0])
  )
  start = Scale("outer").init(jax.random.key(0), DRAWN, None, SPEC)
  assert all((x == 1).all() for x in jax.tree.leaves(start))
  with pytest.raises(ValueError, match="Scale.axis"):
    Scale("depth")


def test_rows_through_two_layers():
  found, params = changed(RowsMlp())
  hidden = np.maximum(affine(params, "first", PROMPT[0, 0]), 0)
  tools.assert_close(found[0, 0], affine(params, "second", hidden))


def test_rows_as_a_sequence():
  found, params = changed(RowsLstm())
  seen = PROMPT[0, 0].astype(np.float64)
  for number in range(2):
    held = params[f"layer_{number}"]
    outputs = []
    for direction in ("forward", "backward"):
      own = {
        name: held[f"{direction}_{name}"]
        for name in ("input_kernel", "recurrent_kernel", "input_bias", "recurrent_bias")
      }
      rows = seen if direction == "forward" else seen[::-1]
      h = c = np.zeros(C // 2)
      made = []
      for row in rows:
        gates = row @ own["input_kernel"] + h @ own["recurrent_kernel"]
        gates = gates + own["input_bias"] + own["recurrent_bias"]
        i, f, g, o = np.split(gates, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        made.append(h)
      outputs.append(made if direction == "forward" else made[::-1])
    seen = np.concatenate([np.array(outputs[0]), np.array(outputs[1])], axis=1)
  tools.assert_close(found[0, 0], seen)
  odd = Drawn(jnp.ones((1, 1, 2, 5)))
  with pytest.raises(ValueError, match="even, got 5"):
    RowsLstm().init(jax.random.key(0), odd, None, SPEC)


def test_one_shift_for_all_rows():
  found, params = changed(SharedShift(5), CODE)
  shift = affine(params, "up", np.maximum(affine(params, "down", MEAN), 0))
  tools.assert_close(found[:, 0], PROMPT[0, 0][None] + shift[:, None])
  start = SharedShift(5).init(jax.random.key(0), DRAWN, CODE, SPEC)
  drawn = SharedShift(5).apply(start, DRAWN, CODE, SPEC).prompt
  np.testing.assert_array_equal(drawn, np.broadcast_to(PROMPT, drawn.shape))


def test_a_gate_for_each_row():
  found, params = changed(InstanceGate(5), CODE)
  queries = affine(params, "query", PROMPT[0, 0])
  wanted = []
  for row, length in zip(VALUES, LENGTHS, strict=True):
    keys = affine(params, "key", row[:length])
    gate = sigmoid((queries @ keys.T).mean(1) / math.sqrt(5))
    wanted.append(gate[:, None] * PROMPT[0, 0])
  tools.assert_close(found[:, 0], wanted)
  off = jax.tree.map(np.zeros_like, params)
  half = InstanceGate(5).apply({"params": off}, DRAWN, CODE, SPEC).prompt
  tools.assert_close(half, np.broadcast_to(PROMPT / 2, half.shape))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_nearest_tokens(metric):
  word = NearestToken(metric, first=3, last=30)
  found, _ = changed(word)
  rows, table = PROMPT[0, 0], TABLE[3:31]
  if metric == "cosine":
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    best = (rows @ unit.T).argmax(1)
  else:
    best = np.square(rows[:, None] - table).sum(-1).argmin(1)
  np.testing.assert_array_equal(found[0, 0], table[best])
  own = nearest(jnp.asarray(table), jnp.asarray(table), metric)
  np.testing.assert_array_equal(own, np.arange(28))

  def loss(prompt):
    return jnp.sin(word.apply({}, Drawn(prompt), None, SPEC).prompt).sum()

  gradient = jax.grad(loss)(jnp.asarray(PROMPT))
  tools.assert_close(gradient[0, 0], np.cos(table[best]))
  with pytest.raises(ValueError, match="from 0 to 39"):
    changed(NearestToken(metric, last=40))
  with pytest.raises(ValueError, match="NearestToken.metric"):
    NearestToken("dot")


def test_tokens_and_their_self_attention():
  context = Context(jnp.ones((R, Q), int), CODE.mask, jnp.asarray(VALUES))
  code = Tokens()(context, SPEC)
  unit = VALUES / np.sqrt(np.square(VALUES).mean(-1, keepdims=True) + 1e-6)
  tools.assert_close(code.values, np.where(MASK[..., None], unit, 0))
  plain = Tokens(normalize=False)(context, SPEC)
  tools.assert_close(plain.values, np.where(MASK[..., None], VALUES, 0))
  word = SelfAttentionMean()
  params = tools.random_params(
    jax.eval_shape(lambda k: word.init(k, context, SPEC), jax.random.key(0))["params"]
  )
  found = word.apply({"params": params}, context, SPEC)
  wanted = []
  for row, length in zip(unit, LENGTHS, strict=True):
    x = row[:length]
    q, k, v = (x @ np.asarray(params[n]) for n in ("query", "key", "value"))
    wanted.append((softmax(q @ k.T / math.sqrt(C)) @ v).mean(0))
  tools.assert_close(found.values[:, 0], wanted)
  assert found.mask.shape == (R, 1)


# ---- parameterisers

SHAPE = (1, P, C)


def drawn(word, code=CODE, shape=SHAPE, spec=SPEC):
  return run(word, code, shape, spec)


@pytest.mark.parametrize("final", ["identity", "relu"])
def test_a_generator_without_biases(final):
  found, params = drawn(ReluMlp(5, final))
  made = np.maximum(MEAN @ params["down"], 0) @ params["up"]
  made = np.maximum(made, 0) if final == "relu" else made
  tools.assert_close(found.reshape(R, -1), made)
  with pytest.raises(ValueError, match="ReluMlp.final"):
    ReluMlp(5, "tanh")


def test_a_gate_of_low_rank():
  found, params = drawn(LowRankGate(5, 2))

  def head(name, size):
    hidden = np.tanh(affine(params, f"{name}_down", MEAN))
    return affine(params, f"{name}_up", hidden).reshape(R, size, 2)

  inner = head("left", P) @ head("right", C).swapaxes(1, 2)
  table = params["table"][0]
  tools.assert_close(found[:, 0], table * 2 * sigmoid(inner))
  assert np.linalg.matrix_rank(inner[0], tol=1e-5) <= 2
  assert (np.sign(found[:, 0]) == np.sign(table)).all()
  for side in ("left", "right"):
    for name in ("kernel", "bias"):
      params[f"{side}_up_{name}"] = np.zeros_like(params[f"{side}_up_{name}"])
  for scale, share in ((2.0, 1.0), (1.0, 0.5)):
    word = LowRankGate(5, 2, scale)
    half = word.apply({"params": params}, CODE, SHAPE, SPEC).prompt
    tools.assert_close(half, np.broadcast_to(table * share, half.shape))
  with pytest.raises(ValueError, match="LowRankGate.width"):
    LowRankGate(5, 0)


def test_a_random_projection_that_nobody_keeps():
  word = RandomProjection(3, seed=7)
  found, params = drawn(word, None)
  assert set(params) == {"table", "scale", "shift"}
  drawn_KH = np.asarray(fixed(7, 3, C), np.float64)
  made = params["table"][0] @ drawn_KH * params["scale"] + params["shift"]
  tools.assert_close(found[0, 0], made)
  with jax.threefry_partitionable(False):
    np.testing.assert_array_equal(fixed(7, 3, C), drawn_KH)
  # A product of today must find the same numbers in later versions of JAX.
  tools.assert_close(drawn_KH[0, :3], GOLDEN)
  with pytest.raises(ValueError, match="RandomProjection.rank"):
    RandomProjection(3, seed=2**32)


def test_low_rank_tables_start_as_the_best_fit():
  def table(key, shape, spec):
    return jnp.asarray(PROMPT[0])

  for rank in (2, P):
    word = LowRank(rank, uniform.zeros(), table_initializer=table)
    params = word.init(jax.random.key(0), None, SHAPE, SPEC)
    found = word.apply(params, None, SHAPE, SPEC).prompt[0, 0]
    left, values, right = np.linalg.svd(PROMPT[0, 0], full_matrices=False)
    tools.assert_close(found, left[:, :rank] * values[:rank] @ right[:rank])


def mixture(sources=2, **options):
  return Mixture(sources, 5, **options)


def test_a_mixture_of_prompts():
  found, params = drawn(mixture(temperature=0.7))
  tables = np.concatenate([params["target"][None], params["sources"]])[:, 0]
  inner = MEAN @ params["down"]
  h = inner * sigmoid(inner) @ params["up"]
  h = (h - h.mean(1, keepdims=True)) / np.sqrt(h.var(1, keepdims=True) + 1e-5)
  h = h * params["norm_scale"] + params["norm_bias"]
  shares = softmax(h @ tables.max(1).T / 0.7)
  wanted = np.einsum("RK,KPH->RPH", shares, tables) + tables[0]
  tools.assert_close(found[:, 0], wanted)
  # Equal keys give equal shares.
  params |= {name: np.zeros_like(params[name]) for name in ("up", "norm_bias")}
  even = mixture().apply({"params": params}, CODE, SHAPE, SPEC).prompt[:, 0]
  tools.assert_close(even, np.broadcast_to(tables.mean(0) + tables[0], even.shape))
  alone, params = drawn(mixture(0))
  tools.assert_close(alone[:, 0], np.broadcast_to(2 * params["target"][0], (R, P, C)))


def test_sources_get_no_gradient():
  word = mixture()
  _, params = drawn(word)
  gradient = jax.grad(
    lambda p: word.apply({"params": p}, CODE, SHAPE, SPEC).prompt.sum()
  )(params)
  assert not np.any(gradient["sources"]) and np.any(gradient["target"])


def test_sources_come_from_files(tmp_path):
  for number in range(2):
    np.save(tmp_path / f"{number}.npy", PROMPT[0, 0] + number)
  paths = [str(tmp_path / f"{number}.npy") for number in range(2)]
  found = saved.stacked(paths)(None, (2, *SHAPE), SPEC)
  tools.assert_close(found[1, 0], PROMPT[0, 0] + 1)
  with pytest.raises(ValueError, match="SOURCE_FILES names 2 files, but SOURCES is 3"):
    saved.stacked(paths)(None, (3, *SHAPE), SPEC)


@pytest.mark.parametrize("top", [1, 3])
def test_rows_of_a_bank(top):
  word = Retrieve(9, top)
  found, params = drawn(word)
  bank, wanted = params["bank"], []
  for row, length in zip(VALUES, LENGTHS, strict=True):
    x = row[:length]
    scores = params["queries"][0] @ params["query"] @ (x @ params["key"]).T
    q = softmax(scores / math.sqrt(C)) @ (x @ params["value"])
    s = q @ bank.T / math.sqrt(C)
    if top > 1:
      s = np.where(s >= np.sort(s, 1)[:, -top][:, None], s, -np.inf)
      wanted.append(softmax(s) @ bank)
    else:
      wanted.append(bank[s.argmax(1)])
  tools.assert_close(found[:, 0], wanted)
  if top == 1:
    np.testing.assert_array_equal(found[:, 0], np.array(wanted))
  gradient = jax.grad(
    lambda p: jnp.square(word.apply({"params": p}, CODE, SHAPE, SPEC).prompt).sum()
  )(params)
  assert not np.any(gradient.pop("bank"))
  assert all(np.any(x) for x in jax.tree.leaves(gradient))
  with pytest.raises(ValueError, match="from 1 to `entries`"):
    Retrieve(9, 10)


def test_tables_of_the_first_layer_alone():
  wide = Code(jnp.asarray(RNG.normal(size=(R, P, 2 * C))), jnp.ones((R, P), bool))
  found, _ = drawn(FirstTables(Rows()), wide, (6, P, C))
  tools.assert_close(found[:, 0], wide.values[..., :C])
  tools.assert_close(found[:, 1], wide.values[..., C:])
  assert not found[:, 2:].any()
  with pytest.raises(ValueError, match="FirstTables.tables"):
    drawn(FirstTables(Rows(), 7), wide, (6, P, C))


# ---- IAPT


def test_the_learned_activation_starts_as_gelu():
  x = np.linspace(-3, 3, 601)
  above, below = jnp.asarray(GELU_ABOVE), jnp.asarray(GELU_BELOW)
  gelu = x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2
  found = rational(jnp.asarray(x, jnp.float32), above, below)
  assert np.abs(found - gelu).max() < 1.2e-4


def test_attended_prompts():
  draw = np.random.default_rng(3)
  r, S = 5, 2
  own = {
    "down": draw.normal(size=(C, r)),
    "attend": draw.normal(size=(r, P)),
    "up": draw.normal(size=(r, C)),
    "above": np.array(GELU_ABOVE) + 0.1,
    "below": np.array(GELU_BELOW) + 0.2,
  }
  text = np.zeros((R, S, Q), bool)
  text[:, 0, :3] = True
  text[1:, 1, 3:] = True
  found = MakeAttended()({}, own, jnp.asarray(VALUES), jnp.asarray(text))
  unit = VALUES / np.sqrt(np.square(VALUES).mean(-1, keepdims=True) + 1e-6)
  for b in range(R):
    for s in range(S):
      if not text[b, s].any():
        continue
      u = unit[b][text[b, s]] @ own["down"]
      g = softmax(u @ own["attend"], 0).T @ u
      over = sum(a * g**j for j, a in enumerate(own["above"]))
      under = 1 + np.abs(sum(x * g ** (j + 1) for j, x in enumerate(own["below"])))
      tools.assert_close(found[b, s], over / under @ own["up"], 2e-5)
  # Without weights of its own each row pools the mean.
  even = MakeAttended()(
    {}, {**own, "attend": own["attend"] * 0}, jnp.asarray(VALUES), jnp.asarray(text)
  )
  tools.assert_close(even[:, 0, :1], even[:, 0, 1:2])

"""Generators against their formulas in numpy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from word_tools import (
  CODE,
  LENGTHS,
  MASK,
  RNG,
  SHAPE,
  SPEC,
  VALUES,
  C,
  Q,
  R,
  close,
  generate,
  run,
)

from prompt_tuning.blocks import phm as phm_block
from prompt_tuning.blocks.lstm import BiLstm
from prompt_tuning.core.trainable import count
from prompt_tuning.inits import uniform
from prompt_tuning.parameterisers.cnn import Cnn
from prompt_tuning.parameterisers.dense import Dense
from prompt_tuning.parameterisers.lstm import Lstm
from prompt_tuning.parameterisers.mlp import Bottleneck, Projection
from prompt_tuning.parameterisers.phm import Phm
from prompt_tuning.parameterisers.rows import Rows


def mean_of_code():
  return np.stack([x[:n].mean(0) for x, n in zip(VALUES, LENGTHS, strict=True)])


def gelu(x):
  return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def test_rows_are_the_code_without_what_is_masked():
  drawn, _ = run(Rows(), CODE, (1, Q, C), SPEC)
  np.testing.assert_array_equal(drawn.prompt[:, 0], VALUES * MASK[..., None])
  np.testing.assert_array_equal(drawn.mask, MASK)
  for shape in ((1, Q, C + 1), (1, Q + 1, C), (2, Q, C)):
    with pytest.raises(ValueError, match=r"turns \[6 8\].* Give the condition"):
      run(Rows(), CODE, shape, SPEC)


def test_dense_is_its_table():
  drawn, params = run(Dense(uniform.zeros()), None, SHAPE, SPEC)
  np.testing.assert_array_equal(drawn.prompt[0], params["prompt"])
  assert drawn.mask is None


def test_projection_formula():
  found, p = generate(Projection())
  wanted = np.maximum(mean_of_code() @ p["out_kernel"] + p["out_bias"], 0)
  close(found, wanted)
  assert 0 < (wanted == 0).mean() < 1


def test_bottleneck_formula():
  found, p = generate(Bottleneck(5))
  hidden = gelu(mean_of_code() @ p["down_kernel"] + p["down_bias"])
  close(found, hidden @ p["up_kernel"] + p["up_bias"].ravel())


@pytest.mark.parametrize("shared", [False, True])
def test_hypercomplex_formula(shared):
  word = Phm(4, 2, shared)
  found, p = generate(word)
  factors = (p["down_a"], p["down_a"] if shared else p["up_a"])
  down, up = (
    sum(np.kron(a, b) for a, b in zip(*pair, strict=True))
    for pair in zip(factors, (p["down_b"], p["up_b"]), strict=True)
  )
  hidden = gelu(mean_of_code() @ down + p["down_bias"])
  close(found, hidden @ up + p["up_bias"].ravel())
  assert ("up_a" in p) != shared


def test_hypercomplex_of_order_one_is_the_bottleneck():
  found, p = generate(Phm(4, 1))
  params = {
    "down_kernel": p["down_a"][0] * p["down_b"][0],
    "down_bias": p["down_bias"],
    "up_kernel": p["up_a"][0] * p["up_b"][0],
    "up_bias": p["up_bias"],
  }
  close(found, generate(Bottleneck(4), params=params)[0])


@pytest.mark.parametrize("n", [1, 2, 4])
def test_hypercomplex_kernel_is_a_sum_of_kronecker_products(n):
  a = RNG.normal(size=(n, n, n)).astype(np.float32)
  b = RNG.normal(size=(n, 8 // n, 12 // n)).astype(np.float32)
  kernel = sum(np.kron(a[i], b[i]) for i in range(n))
  close(phm_block.kernel(a, b), kernel)
  x = VALUES[:, 0]
  close(phm_block.multiply(x, a, b), x @ kernel)


@pytest.mark.parametrize("word", [Projection(0.5), Bottleneck(5, 0.5), Phm(4, 2)])
def test_dropout_acts_in_training_alone(word):
  still, params = generate(word)
  again, _ = generate(word, params=params)
  np.testing.assert_array_equal(still, again)
  dropped = [
    generate(word, params=params, train=True, rngs={"dropout": jax.random.key(i)})[0]
    for i in range(2)
  ]
  assert (dropped[0] != dropped[1]).any() and (dropped[0] != still).any()
  if isinstance(word, Projection):
    assert np.isin(dropped[0], [0, *(2 * still).ravel()]).all()


@pytest.mark.parametrize("falls", [False, True])
def test_filters_formula(falls):
  _, p = generate(Cnn())
  values = VALUES
  if falls:
    # Now the pads behind a text would win, if windows could start there.
    values = np.abs(VALUES)
    for k in (3, 4, 5):
      p[f"filter_{k}_kernel"] = -np.abs(p[f"filter_{k}_kernel"])
      p[f"filter_{k}_bias"] = np.float32(20)
  strongest = []
  for row, length in zip(values, LENGTHS, strict=True):
    text = np.concatenate([row[:length], np.zeros((5, C))])
    best = []
    for k in (3, 4, 5):
      kernel, bias = p[f"filter_{k}_kernel"], p[f"filter_{k}_bias"]
      windows = [(text[t : t + k] * kernel).sum() + bias for t in range(length)]
      best.append(max(0, *windows))
    strongest.append(best)
  code = CODE.replace(values=jnp.asarray(values))
  found, _ = run(Cnn(), code, SHAPE, SPEC, params=p)
  wanted = np.array(strongest) @ p["out_kernel"] + p["out_bias"]
  close(found.prompt.reshape(R, -1), wanted)
  assert np.count_nonzero(strongest) >= 5


def lstm(x, params, direction):
  """Outputs of one direction over an unpadded text, step by step."""
  w, u, b, c = (
    params[f"{direction}_{name}"]
    for name in ("input_kernel", "recurrent_kernel", "input_bias", "recurrent_bias")
  )
  units = len(u)
  hidden, cell, outputs = np.zeros(units), np.zeros(units), []
  for step in x if direction == "forward" else x[::-1]:
    i, f, g, o = np.split(step @ w + b + hidden @ u + c, 4)
    cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
    hidden = sigmoid(o) * np.tanh(cell)
    outputs.append(hidden)
  return np.array(outputs if direction == "forward" else outputs[::-1])


def bi_lstm(x, params):
  return np.concatenate([lstm(x, params, d) for d in ("forward", "backward")], axis=1)


def test_recurrent_layer_formula():
  units = 3
  (outputs, ends), p = run(BiLstm(units), CODE.values, CODE.mask, SPEC)
  assert count(p) == 2 * 4 * units * (C + units + 2)
  for r, length in enumerate(LENGTHS):
    wanted = bi_lstm(VALUES[r, :length], p)
    close(outputs[r, :length], wanted)
    assert not outputs[r, length:].any()
    close(ends[r], np.append(wanted[-1, :units], wanted[0, units:]))


def test_recurrent_generator_formula():
  units = 3
  found, p = generate(Lstm(units))
  for r, length in enumerate(LENGTHS):
    upper = bi_lstm(bi_lstm(VALUES[r, :length], p["lower"]), p["upper"])
    state = np.append(upper[-1, :units], upper[0, units:])
    close(found[r], state @ p["out_kernel"] + p["out_bias"])

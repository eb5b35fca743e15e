"""Each word against its formula in numpy, and what it says to bad input."""

import logging
import math

import jax
import jax.numpy as jnp
import method_tools as tools
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from prompt_tuning.blocks import phm as phm_block
from prompt_tuning.blocks.lstm import BiLstm
from prompt_tuning.conditions.external import External
from prompt_tuning.conditions.pooled import Embeddings, Encoding
from prompt_tuning.conditions.token_lookup import TokenLookup
from prompt_tuning.core.context import Code, Context, Spec, Tables
from prompt_tuning.core.places import At
from prompt_tuning.core.prompt import Drawn, Prompt, Together
from prompt_tuning.core.trainable import count
from prompt_tuning.inits import saved, uniform, vocabulary
from prompt_tuning.parameterisers.cnn import Cnn
from prompt_tuning.parameterisers.dense import Dense
from prompt_tuning.parameterisers.lstm import Lstm
from prompt_tuning.parameterisers.mlp import Bottleneck, Projection
from prompt_tuning.parameterisers.phm import Phm
from prompt_tuning.parameterisers.rows import Rows
from prompt_tuning.transforms.add_table import AddTable

R, Q, C, V = 3, 6, 8, 40
SHAPE = (1, 4, C)
LENGTHS = (6, 2, 4)
RNG = np.random.default_rng(0)
VALUES = RNG.normal(size=(R, Q, C)).astype(np.float32)
MASK = np.arange(Q)[None] < np.array(LENGTHS)[:, None]
IDS = np.where(MASK, RNG.integers(3, V, (R, Q)), 0)
# Row i of the table holds i, so that a row tells which token it was.
TABLE = np.repeat(np.arange(V, dtype=np.float32)[:, None], C, axis=1)
PLACES = {f"{side}.input": Tables(1, C) for side in ("encoder", "decoder")}
SPEC = Spec(C, V, PLACES, TABLE, lambda text: [ord(x) - ord("a") + 3 for x in text])
CODE = Code(jnp.asarray(VALUES), jnp.asarray(MASK))
CONTEXT = Context(
  ids=jnp.asarray(IDS),
  mask=jnp.asarray(MASK),
  embeddings=jnp.asarray(VALUES),
  encoding=jnp.asarray(VALUES[:, ::-1]),
  external=jnp.asarray(VALUES[:, 0]),
)


def run(word, *arguments, params=None, **options):
  """The word's result as numpy, and the parameters (at random) it was made with."""
  if params is None:
    shapes = jax.eval_shape(lambda key: word.init(key, *arguments), jax.random.key(0))
    params = tools.random_params(shapes.get("params", {}))
  found = word.apply({"params": params}, *arguments, **options)
  return found, jax.tree.map(np.asarray, params)


def generate(word, **options):
  drawn, params = run(word, CODE, SHAPE, SPEC, **options)
  assert drawn.prompt.shape == (R, *SHAPE)
  return np.asarray(drawn.prompt).reshape(R, -1), params


def close(left, right):
  tools.assert_close(left, right, 2e-6)


def mean_of_code():
  return np.stack([x[:n].mean(0) for x, n in zip(VALUES, LENGTHS, strict=True)])


def gelu(x):
  return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("word, reads", [(Embeddings, 1), (Encoding, -1)])
@pytest.mark.parametrize("pool", ["mean", "first", "last", "attention"])
def test_pools(word, reads, pool):
  values = VALUES[:, ::reads]
  code, params = run(word(pool, normalize=False), CONTEXT, SPEC)
  wanted = []
  for row, length in zip(values, LENGTHS, strict=True):
    real = row[:length]
    weights = np.full(length, 1 / length)
    if pool in ("first", "last"):
      weights = np.eye(length)[0 if pool == "first" else -1]
    if pool == "attention":
      weights = np.exp(real @ params["query"])
      weights /= weights.sum()
    wanted.append(weights @ real)
  close(code.values[:, 0], wanted)
  assert code.mask.shape == (R, 1) and code.mask.all()
  assert ("encoding" in word.needs) == (word is Encoding)


def test_pooled_codes_have_unit_scale_and_an_empty_text_is_zero():
  empty = CONTEXT.replace(mask=CONTEXT.mask.at[1].set(False))
  code, _ = run(Embeddings(), empty, SPEC)
  scale = np.sqrt(np.mean(np.square(code.values[:, 0]), -1))
  tools.assert_close(scale, [1, 0, 1])


def test_external_vectors_pass_unchanged():
  code, params = run(External(C), CONTEXT, SPEC)
  np.testing.assert_array_equal(code.values[:, 0], VALUES[:, 0])
  assert not params
  with pytest.raises(ValueError, match="width` is 5, but .* width 8"):
    run(External(5), CONTEXT, SPEC)


@pytest.mark.parametrize("length, width", [(4, 0), (9, 3)])
def test_token_lookup_reads_the_first_tokens(length, width):
  word = TokenLookup(length, uniform.zeros(), width)
  code, params = run(word, CONTEXT, SPEC)
  assert params["table"].shape == (V, width or C)
  assert code.values.shape == (R, length, width or C)
  for row, mask, ids, real in zip(code.values, code.mask, IDS, LENGTHS, strict=True):
    assert mask.sum() == min(real, length)
    np.testing.assert_array_equal(row[mask], params["table"][ids[:real][:length]])


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


@pytest.mark.parametrize("mask", [None, MASK])
def test_added_table(mask):
  given = Drawn(CODE.values[:, None], mask if mask is None else jnp.asarray(mask))
  drawn, p = run(AddTable(uniform.zeros(), 0.05), given, None, SPEC)
  kept = VALUES if mask is None else VALUES * mask[..., None]
  close(drawn.prompt, p["table"] + 0.05 * kept[:, None])
  assert drawn.mask is None


def test_sites_place_the_vectors():
  drawn = CODE.values[:, None], CODE.mask
  found = At("encoder.input")(*drawn, SPEC)
  np.testing.assert_array_equal(found.vectors, VALUES)
  np.testing.assert_array_equal(found.mask, MASK)
  found = At("decoder.input")(*drawn, SPEC)
  np.testing.assert_array_equal(found.vectors, VALUES * MASK[..., None])
  assert found.mask is None
  for site in ("encoder.input", "decoder.input"):
    assert At(site).tables(SPEC)[:2] == (1, C)


def static(length, site=None):
  return Prompt(length, Dense(uniform.zeros()), site or "encoder.input")


def test_several_prompts_as_one():
  masked = Prompt(Q, Rows(), "encoder.input", TokenLookup(Q, uniform.zeros()))
  both = Together([static(2), masked, static(1, "decoder.input")])
  assert both.lengths == {"encoder": 2 + Q, "decoder": 1}
  assert both.reads_input and not both.needs and both.external_width == 0
  found, p = run(both, CONTEXT, SPEC)
  task = p["prompts_0"]["parameterise"]["prompt"][0]
  encoder, decoder = found.get("encoder.input"), found.get("decoder.input")
  np.testing.assert_array_equal(encoder.vectors[1, :2], task)
  assert encoder.vectors.shape == (R, 2 + Q, C)
  np.testing.assert_array_equal(encoder.mask[:, 2:], MASK)
  assert encoder.mask[:, :2].all() and decoder.vectors.shape == (1, 1, C)


def draw(initializer, *shape):
  return np.asarray(initializer(jax.random.key(0), shape, SPEC))


def test_uniform_draws():
  wide = draw(uniform.symmetric(0.5), 40, 50)
  assert wide.min() < -0.45 and wide.max() > 0.45 and np.abs(wide).max() <= 0.5
  positive = draw(uniform.positive(0.5), 40, 50)
  assert 0 <= positive.min() < 0.05 and 0.45 < positive.max() <= 0.5
  assert abs(draw(uniform.normal(0.02), 40, 50).std() - 0.02) < 0.002
  assert not draw(uniform.zeros(), 2, 3).any()


def test_sampled_rows_are_distinct_words():
  ids = draw(vocabulary.sampled(), 1, V - 3, C)[0, :, 0]
  assert sorted(ids) == list(range(3, V))
  few = draw(vocabulary.sampled(population=4), 1, 4, C)[0, :, 0]
  assert sorted(few) == [3, 4, 5, 6]
  repeated = draw(vocabulary.sampled(population=2), 1, 6, C)[0, :, 0]
  assert set(repeated) <= {3, 4}


def test_class_labels_start_as_their_mean_embedding():
  first = vocabulary.class_labels(["ab", "d"], uniform.zeros())
  np.testing.assert_array_equal(draw(first, 1, 3, C)[0, :, 0], [3.5, 6, 0])


def test_text_starts_as_its_pieces(caplog):
  initializer = vocabulary.text("abc", vocabulary.sampled())
  rows = draw(initializer, 1, 5, C)[0, :, 0]
  np.testing.assert_array_equal(rows[:3], [3, 4, 5])
  assert (rows[3:] >= 3).all()
  with caplog.at_level(logging.WARNING):
    np.testing.assert_array_equal(draw(initializer, 1, 2, C)[0, :, 0], [3, 4])
  assert "3 rows were given for a prompt of length 2" in caplog.text


def test_saved_rows(tmp_path):
  array = VALUES[0].astype(np.float64)
  np.save(tmp_path / "a.npy", array)
  (tmp_path / "prompt").mkdir()
  named = {"x": VALUES[0], "y": VALUES[1]}
  safetensors_numpy.save_file(named, tmp_path / "two.safetensors")
  one = tmp_path / "prompt" / "prompt.safetensors"
  safetensors_numpy.save_file({"x": VALUES[0]}, one)
  for path, tensor in (("a.npy", None), ("two.safetensors", "x"), ("prompt", None)):
    found = draw(saved.rows(str(tmp_path / path), tensor), 1, Q, C)
    np.testing.assert_array_equal(found[0], VALUES[0])
  np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
  (tmp_path / "cut.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:90])
  for path, tensor, fault in (
    ("objects.npy", None, "cannot be read as an array.*pickle"),
    ("cut.npy", None, "cannot be read as an array"),
    ("none.npy", None, "There is no file"),
    ("two.safetensors", None, "name one of them"),
    ("two.safetensors", "z", r"holds \['x', 'y'\].* got 'z'"),
  ):
    with pytest.raises(ValueError, match=fault):
      draw(saved.rows(str(tmp_path / path), tensor), 1, Q, C)
  with pytest.raises(ValueError, match=r"shape \(6, 8\), but \(1, 5, 8\) is asked"):
    draw(saved.rows(str(tmp_path / "a.npy")), 1, 5, C)


BLANK = Spec(C, V, PLACES)
BAD = {
  "`Prompt.length`.* got 0.* `unprompted`": lambda: static(0),
  "`Prompt.condition` is None, but Rows reads": lambda: Prompt(
    4, Rows(), "encoder.input"
  ),
  "but Dense does not read a code": lambda: Prompt(
    4, Dense(uniform.zeros()), "encoder.input", Embeddings()
  ),
  "`pool` must be one of .* got 'cls'": lambda: Embeddings("cls"),
  "`Bottleneck.width` must be at least 1, got 0": lambda: generate(Bottleneck(0)),
  "order 3 must divide the code's width = 8": lambda: generate(Phm(6, 3)),
  "order 4 must divide `Phm.width` = 6": lambda: generate(Phm(6, 4)),
  r"must divide PROMPT_LENGTH \* width = 12": lambda: run(
    Phm(8, 8), CODE, (1, 4, 3), SPEC
  ),
  "order 0 must divide": lambda: generate(Phm(8, 0)),
  "`uniform.symmetric` takes a scale of at least 0, got -1": lambda: uniform.symmetric(
    -1
  ),
  "`uniform.positive` takes": lambda: uniform.positive(-1),
  "`uniform.normal` takes": lambda: uniform.normal(-1),
  "population` must be at least 1, got 0": lambda: vocabulary.sampled(0),
  "first` is 40, but the table has 40 rows": lambda: draw(
    vocabulary.sampled(first=40), 1, 2, C
  ),
  "labels` is empty": lambda: vocabulary.class_labels([], uniform.zeros()),
  "words` is empty": lambda: vocabulary.text("  ", uniform.zeros()),
  "rows have width 8, but the site asks for 5": lambda: draw(
    vocabulary.sampled(), 1, 2, 5
  ),
  "without a token table": lambda: vocabulary.sampled()(
    jax.random.key(0), (1, 2, C), BLANK
  ),
  "has no pieces": lambda: draw(
    vocabulary.class_labels([""], uniform.zeros()), 1, 2, C
  ),
  r"`Dense.prompt` must have shape \(1, 4, 8\), got \(1, 3, 8\)": lambda: run(
    Dense(None), None, SHAPE, SPEC, params={"prompt": jnp.zeros((1, 3, C))}
  ),
  r"`Dense.prompt` must have shape \(1, 4, 8\), got None": lambda: run(
    Dense(None), None, SHAPE, SPEC, params={}
  ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused(message):
  with pytest.raises(ValueError, match=message):
    BAD[message]()

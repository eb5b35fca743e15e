"""The T5 network: its two forms agree, caches and packing change nothing, HF agrees."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from goldens import weights

from prompt_tuning.backbones.t5.attention import (
  RelativeBias,
  looked_up,
  looked_up_by_product,
  relative_bucket,
)
from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.backbones.t5.config import T5Config
from prompt_tuning.backbones.t5.network import Encoder
from prompt_tuning.backbones.t5.stacking import stack_layers, unstack_layers

GOLDENS = pathlib.Path(__file__).parent / "goldens"
SIZES = {**weights.T5_1_1, "num_encoder_layers": 2}
CONFIG = T5Config(**SIZES)
# Every test but the golden ones keeps to these shapes, so that compilations are shared.
B, T, U = 2, 7, 5


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
  """These programs run once: compiling them well takes longer than running them."""
  before = jax.config.read("jax_disable_most_optimizations")
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", before)


def model(**changes):
  """A tiny T5 1.1 and its weights, in the form that the changes ask for."""
  backbone = T5(dataclasses.replace(CONFIG, **changes))
  params = weights.nested(weights.t5_weights(SIZES))
  if backbone.config.scan_layers:
    params = stack_layers(params, backbone.config)
  return backbone, jax.tree.map(jnp.asarray, params)


def batch():
  rng = np.random.default_rng(0)
  inputs = rng.integers(2, CONFIG.vocab_size, (B, T))
  inputs[1, 5:] = 0
  targets = rng.integers(2, CONFIG.vocab_size, (B, U))
  return as_batch(inputs, targets)


def as_batch(inputs, targets):
  shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
  return {"inputs": jnp.asarray(inputs), "decoder_inputs": jnp.asarray(shifted)}


@functools.partial(jax.jit, static_argnums=0)
def logits(backbone, params, batch, key=None):
  encoded, mask = backbone.encode(params, batch, key=key)
  return backbone.decode(params, batch, encoded, mask, key=key)


@functools.partial(jax.jit, static_argnums=0)
def logits_and_gradient(backbone, params, batch):
  def loss(params):
    out = logits(backbone, params, batch)
    return jnp.square(out).mean(), out

  gradient, out = jax.grad(loss, has_aux=True)(params)
  return out, gradient


@functools.cache
def reference():
  """Logits and gradient of the unrolled form without remat."""
  return logits_and_gradient(*model(), batch())


@pytest.mark.parametrize("scan,remat", [(False, "full"), (True, "dots")])
def test_scan_and_remat_change_neither_logits_nor_gradient(scan, remat):
  expected, expected_gradient = reference()
  backbone, params = model(scan_layers=scan, remat_policy=remat)
  out, gradient = logits_and_gradient(backbone, params, batch())
  assert np.abs(expected).max() > 1
  np.testing.assert_allclose(out, expected, atol=1e-5)
  pairs = jax.tree.leaves(
    jax.tree.map(lambda *x: x, unstack_layers(gradient), expected_gradient),
    is_leaf=lambda x: isinstance(x, tuple),
  )
  for got, want in pairs:
    assert np.abs(want).max() > 0
    np.testing.assert_allclose(got, want, atol=1e-5 * (1 + np.abs(want).max()))


@pytest.mark.parametrize(
  "scan,remat,blocks", [(True, "none", 0), (True, "full", 2), (False, "dots", 4)]
)
def test_remat_policy_reaches_the_layers_of_both_stacks(scan, remat, blocks):
  backbone, params = model(scan_layers=scan, remat_policy=remat)
  program = jax.make_jaxpr(functools.partial(logits.__wrapped__, backbone))
  text = str(program(params, batch()))
  assert text.count("policy=") == blocks
  assert ("nothing_saveable" in text) == (remat == "full")


@functools.partial(jax.jit, static_argnums=0)
def cached_logits(backbone, params, batch):
  """Logits of all positions, by steps."""
  reading = backbone.read(params, batch)
  first_BV, memory, cache = backbone.prefill(params, reading, U + 3)
  held = jax.tree.leaves((memory.cross, cache))
  assert {leaf.shape[backbone.cache_axis] for leaf in held} == {B}
  ids_BU = batch["decoder_inputs"]

  def step(cache, index):
    out_BV, cache = backbone.extend(params, ids_BU[:, index], memory, cache, index - 1)
    return cache, out_BV

  _, rest = jax.lax.scan(step, cache, jnp.arange(1, U))
  return jnp.concatenate([first_BV[None], rest]).swapaxes(0, 1)


@pytest.mark.parametrize("scan", [False, True])
def test_cached_steps_equal_teacher_forcing(scan):
  out = cached_logits(*model(scan_layers=scan), batch())
  np.testing.assert_allclose(out, reference()[0], atol=1e-5)


def test_packed_segments_equal_separate_rows():
  backbone, params = model()
  rng = np.random.default_rng(1)
  # Two rows of two examples, input and target lengths; the second row ends in pads.
  lengths = [[(4, 2), (3, 3)], [(2, 1), (3, 3)]]
  together = {name: [] for name in ("inputs", "decoder_inputs")}
  together |= {"segment_ids": [], "decoder_segment_ids": []}
  alone = []
  for row in lengths:
    sides = zip(*row, strict=True)
    inputs, targets = (
      [rng.integers(2, CONFIG.vocab_size, n) for n in side] for side in sides
    )
    shifted = [np.append(0, ids[:-1]) for ids in targets]
    together["inputs"].append(in_one_row(inputs, T))
    together["decoder_inputs"].append(in_one_row(shifted, U))
    for name, parts in {"": inputs, "decoder_": targets}.items():
      numbers = [np.full(len(ids), i + 1) for i, ids in enumerate(parts)]
      size = U if name else T
      together[f"{name}segment_ids"].append(in_one_row(numbers, size))
    separate = {
      "inputs": jnp.stack([in_one_row([ids], T) for ids in inputs]),
      "decoder_inputs": jnp.stack([in_one_row([ids], U) for ids in shifted]),
    }
    out = logits(backbone, params, separate)
    alone.append(np.concatenate([out[i, : len(targets[i])] for i in range(2)]))
  together = {name: jnp.stack(rows) for name, rows in together.items()}
  out = logits(backbone, params, together)
  for packed, expected in zip(out, alone, strict=True):
    np.testing.assert_allclose(packed[: len(expected)], expected, atol=1e-5)
  assert np.isfinite(out).all()


def in_one_row(parts, size):
  row = np.concatenate(parts)
  return jnp.asarray(np.pad(row, (0, size - len(row))))


@pytest.mark.parametrize("name", weights.CONFIGS)
def test_names_shapes_and_axes_of_parameters(name):
  config = T5Config(**weights.CONFIGS[name])
  shapes = flat_shapes(T5(config))
  assert shapes == weights.t5_shapes(weights.CONFIGS[name])
  assert axes_of(T5(config)).keys() == shapes.keys()
  scanned = T5(dataclasses.replace(config, scan_layers=True))
  stacked_shapes, stacked_axes = flat_shapes(scanned), axes_of(scanned)
  assert stacked_shapes.keys() == stacked_axes.keys()
  for path, axes in {**axes_of(T5(config)), **stacked_axes}.items():
    assert isinstance(axes, tuple) and all(isinstance(axis, str) for axis in axes)
    assert len(axes) == len({**shapes, **stacked_shapes}[path])
    assert (axes[0] == "layers") == ("/layers/" in path)
  kernel = "encoder/layers/attention/query/kernel"
  assert stacked_axes[kernel] == ("layers", "embed", "joined_kv")
  assert stacked_shapes[kernel] == (3, 16, 18)


def flat_shapes(backbone):
  return {k: v.shape for k, v in flatten_dict(backbone.shapes(), sep="/").items()}


def axes_of(backbone):
  return flatten_dict(backbone.logical_axes(), sep="/")


def test_stacking_is_undone_by_unstacking():
  flat = weights.t5_weights(SIZES)
  params = weights.nested(flat)
  stacked = stack_layers(params, CONFIG)
  assert stacked["decoder"]["layers"]["mlp"]["wo"]["kernel"].shape == (2, 24, 16)
  assert stacked.keys() == params.keys() and "layers_0" in params["encoder"]
  back = flatten_dict(unstack_layers(stacked), sep="/")
  assert back.keys() == flat.keys()
  for name, value in flat.items():
    assert type(back[name]) is np.ndarray
    np.testing.assert_array_equal(back[name], value)
  again = flatten_dict(stack_layers(stacked, CONFIG), sep="/")
  for name, value in flatten_dict(stacked, sep="/").items():
    np.testing.assert_array_equal(again[name], value)
  assert flatten_dict(unstack_layers(params), sep="/").keys() == flat.keys()


def test_stacking_refuses_another_depth():
  params = weights.nested(weights.t5_weights(SIZES))
  deeper = dataclasses.replace(CONFIG, num_decoder_layers=3)
  for tree in (params, stack_layers(params, CONFIG)):
    with pytest.raises(ValueError, match="num_decoder_layers` = 3"):
      stack_layers(tree, deeper)


def test_scanned_layers_are_drawn_apart():
  encoder = Encoder(dataclasses.replace(CONFIG, scan_layers=True))
  x_BTH, mask_BT = jnp.ones((1, 1, CONFIG.emb_dim)), jnp.ones((1, 1), bool)
  params = jax.jit(encoder.init)(jax.random.key(0), x_BTH, mask_BT)["params"]
  kernel_LFH = params["layers"]["mlp"]["wo"]["kernel"]
  assert np.abs(kernel_LFH[0] - kernel_LFH[1]).max() > 0.01
  # The fan-in is that of one layer: deviation F^-0.5, whatever the depth.
  assert 0.15 < kernel_LFH.std() < 0.25


def test_dropout_follows_its_key():
  backbone, params = model(scan_layers=True, dropout_rate=0.5)
  keys = [jax.random.key(k) for k in (0, 0, 1)]
  first, again, other = (logits(backbone, params, batch(), key) for key in keys)
  np.testing.assert_array_equal(first, again)
  assert np.abs(first - other).max() > 0.1


def test_activations_in_bfloat16_stay_near():
  backbone, params = model(scan_layers=True, dtype="bfloat16")
  out = logits(backbone, params, batch())
  assert out.dtype == jnp.float32
  np.testing.assert_allclose(out, reference()[0], atol=0.3)


# Hugging Face Transformers, in float32: see goldens/make_t5_goldens.py.


@functools.cache
def golden():
  with np.load(GOLDENS / "t5_forward.npz") as arrays:
    return dict(arrays)


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_position_buckets_equal_hugging_face(side):
  distances = jnp.asarray(golden()["distances"])
  bucket = jax.jit(relative_bucket, static_argnums=(1, 2, 3))
  for function in (relative_bucket, bucket):
    out = function(distances, side == "encoder", 32, 128)
    np.testing.assert_array_equal(out, golden()[f"{side}_buckets"])


def test_both_ways_to_look_up_a_position_bias_give_the_same_bits():
  draw = np.random.default_rng(0)
  table_NX = draw.normal(size=(3, 8)).astype(np.float32)
  bucket_BQT = draw.integers(8, size=(2, 4, 5))
  found = looked_up(table_NX, bucket_BQT)
  assert found.shape == (2, 3, 4, 5)
  np.testing.assert_array_equal(found[1, 2], table_NX[2, bucket_BQT[1]])
  by_product = looked_up_by_product(table_NX, bucket_BQT)
  np.testing.assert_array_equal(by_product, found)


def test_only_a_tpu_looks_up_a_position_bias_by_a_product():
  layer = RelativeBias(T5Config(8, 4, 2, 2, 8, 1, 1), bidirectional=True)
  arguments = jnp.zeros((1, 3), jnp.int32), jnp.arange(3)
  params = layer.init(jax.random.key(0), *arguments)
  for platform, products in (("cpu", 0), ("cuda", 0), ("tpu", 1)):
    lowered = jax.jit(layer.apply).trace(params, *arguments)
    text = lowered.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("dot_general") == products


@pytest.mark.parametrize("name", weights.CONFIGS)
def test_logits_loss_and_input_gradient_equal_hugging_face(name):
  # Without a key dropout is off, whatever its rate.
  backbone = T5(T5Config(**weights.CONFIGS[name], dropout_rate=0.5))
  params = jax.tree.map(jnp.asarray, weights.nested(weights.tiny_weights(name)))
  inputs, targets = (golden()[f"{name}/{k}"] for k in ("inputs", "targets"))
  data, mask = as_batch(inputs, targets), jnp.asarray(inputs > 0)

  def loss(embeddings):
    encoded = backbone.encode_rows(params, embeddings, mask)
    out = backbone.decode(params, data, encoded, mask)
    losses = optax.softmax_cross_entropy_with_integer_labels(out, targets)
    return losses.mean(where=targets > 0), out

  embeddings = backbone.embed(params, data["inputs"])
  (value, out), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(embeddings)
  expected = golden()[f"{name}/input_gradient"]
  np.testing.assert_allclose(value, golden()[f"{name}/loss"], atol=1e-5)
  np.testing.assert_allclose(out, golden()[f"{name}/logits"], atol=1e-4)
  np.testing.assert_allclose(gradient, expected, atol=1e-4 * np.abs(expected).max())

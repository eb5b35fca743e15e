"""What must hold of every decoder, whatever its parts."""

import dataclasses
import functools

import decoder_tools as tools
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.backbones.common import int8
from prompt_tuning.backbones.common.stacking import stack_layers, unstack_layers
from prompt_tuning.core import trainable as branches
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.core.prompt import Prompt
from prompt_tuning.data.batches import stack
from prompt_tuning.data.features import Layout, pad
from prompt_tuning.data.packing import pack
from prompt_tuning.engine import step
from prompt_tuning.objectives.cross_entropy import CrossEntropy
from prompt_tuning.parameterisers.dense import Dense

T, U, S, P = 9, 4, 3, 3
PLACES = {
  "bare": None,
  "input": "decoder.input",
  "kv": "decoder.kv",
  "layers": "decoder.layers",
  "offset": "decoder.offset",
  "changes": ["decoder.self.key.weight", "decoder.mlp.down.adapter"],
  "both": ["decoder.kv", "decoder.input", "decoder.offset"],
}
CASES = [("llama_tied", place) for place in PLACES]
CASES += [("gpt2", "both"), ("neox", "kv")]
# 0 is a word, and so is what ends.
TEXTS = [[4, 0, 9, 7], [5], [11, 2, 3, 30, 31, 8], [], [6, 7, 6], [1, 0]]
ANSWERS = [[9, 2], [0, 2], [3, 5, 12, 2], [17, 2], [9, 9, 2], [2]]


@pytest.fixture(params=CASES, ids="-".join, scope="module")
def case(request):
  """(model, params)"""
  name, place = request.param
  return tools.prompted(name, PLACES[place], P)


def examples():
  return [
    {"inputs": np.array(text, np.int32), "targets": np.array(answer, np.int32)}
    for text, answer in zip(TEXTS, ANSWERS, strict=True)
  ]


def batch_of(model, rows, more=0):
  layout = Layout.of(model, T + more, U)
  converted = [pad(layout.convert(row), layout.lengths, layout.form) for row in rows]
  return layout, jax.tree.map(jnp.asarray, stack(converted))


@functools.partial(jax.jit, static_argnums=0)
def logits(model, params, batch):
  return model.logits(params, batch)


def close(found, wanted, atol=1e-4):
  np.testing.assert_allclose(found, wanted, atol=atol, rtol=1e-4)


def test_padding_and_other_targets_are_invisible(case):
  model, params = case
  _, short = batch_of(model, examples())
  _, long = batch_of(model, examples(), more=5)
  one, other = (np.asarray(logits(model, params, batch)) for batch in (short, long))
  alone = np.asarray(logits(model, params, batch_of(model, examples()[2:3])[1]))
  for b, answer in enumerate(ANSWERS):
    close(other[b, : len(answer)], one[b, : len(answer)])
  close(alone[0, : len(ANSWERS[2])], one[2, : len(ANSWERS[2])])
  later = {**short, "decoder_inputs": short["decoder_inputs"].at[:, 2:].set(1)}
  close(logits(model, params, later)[:, :2], one[:, :2])


def test_packed_rows_train_as_padded_ones_do(case):
  model, params = case
  layout, batch = batch_of(model, examples())
  converted = [layout.convert(row) for row in examples()]
  many = dataclasses.replace(model, segments=S)
  packed = stack(list(pack(converted, 24, 10, S, form=layout.form)))
  assert packed["segment_ids"].max() > 1
  trains, frozen = branches.split(params, ["prompt"] if model.prompt else ["backbone"])

  def run(model, batch):
    made = jax.jit(step.gradients(model, CrossEntropy(0.01), 1))
    return made(trains, frozen, jax.tree.map(jnp.asarray, batch), None)

  (one, (left,)), (other, (right,)) = run(model, batch), run(many, packed)
  assert float(left.weight) == float(right.weight) == sum(map(len, ANSWERS))
  np.testing.assert_allclose(left.total, right.total, rtol=1e-4)
  assert any(np.abs(x).max() > 1e-3 for x in jax.tree.leaves(one))
  jax.tree.map(lambda a, b: close(a, b, 2e-3), one, other)


def test_cached_steps_equal_teacher_forcing(case):
  model, params = case
  backbone, weights = model.backbone, params["backbone"]
  _, batch = batch_of(model, examples())
  wanted = np.asarray(logits(model, params, batch))
  reading, injection = jax.jit(model.read)(params, batch)
  given = weights, reading, U - 1, injection
  found, memory, cache = jax.jit(backbone.prefill, static_argnums=2)(*given)
  extend = jax.jit(backbone.extend)
  for u in range(U):
    for b, answer in enumerate(ANSWERS):
      if u < len(answer):
        close(found[b], wanted[b, u])
    if u < U - 1:
      ids_B = jnp.maximum(batch["targets"][:, u], 0)
      found, cache = extend(weights, ids_B, memory, cache, jnp.int32(u))
  states = jax.jit(backbone.continued)(weights, reading, batch["targets"], injection)
  again = np.asarray(backbone.logits(weights, states))
  for b, answer in enumerate(ANSWERS):
    close(again[b, : len(answer)], wanted[b, : len(answer)])


def test_scanned_equals_unrolled(case):
  model, params = case
  depths = {"decoder": model.backbone.config.num_decoder_layers}
  stacked = stack_layers(params["backbone"], depths, "{}")
  scanned = model.backbone.recast(scan_layers=True, remat_policy="full")
  jax.tree.map(
    np.testing.assert_array_equal, unstack_layers(stacked), params["backbone"]
  )
  shapes = jax.tree.map(lambda x: x.shape, scanned.shapes())
  assert shapes == jax.tree.map(lambda x: x.shape, stacked)
  other = dataclasses.replace(model, backbone=scanned)
  _, batch = batch_of(model, examples())
  found = logits(other, {**params, "backbone": stacked}, batch)
  close(found, logits(model, params, batch))
  reading, injection = jax.jit(other.read)({**params, "backbone": stacked}, batch)
  first = jax.jit(scanned.prefill, static_argnums=2)(stacked, reading, 2, injection)[0]
  close(first, found[:, 0])


@pytest.mark.parametrize("name", tools.FEW)
def test_a_prompt_of_words_is_these_words_typed(name):
  backbone, weights = tools.loaded(name)
  words, text = [7, 0, 12], [5, 9, 30]
  table = {"parameterise": {"prompt": backbone.table(weights)[jnp.array([words])]}}
  model = PromptedModel(backbone, Prompt(P, Dense(tools.INIT), "decoder.input"))
  params = {"backbone": weights, "prompt": table}
  answer = jnp.array([[3, 4, 2]])
  found = model.logits(params, model.features(jnp.array([text]), answer))
  bare = PromptedModel(backbone)
  typed = bare.features(jnp.array([[*words, *text]]), answer)
  np.testing.assert_allclose(
    found, bare.logits({"backbone": weights}, typed), atol=1e-5
  )


@pytest.mark.parametrize("name", tools.FEW)
def test_keys_and_values_of_words_are_these_words_typed(name):
  backbone, weights = tools.loaded(name)
  words, text, answer = [7, 0, 12], [5, 9, 30], jnp.array([[3, 4, 2]])
  bare = PromptedModel(backbone)
  typed = bare.features(jnp.array([[*words, *text]]), answer)
  reading, _ = bare.read({"backbone": weights}, typed)
  pairs = [x[:, :P].reshape(1, P, -1) for pair in reading.past for x in pair]
  assert pairs[0].shape[-1] == backbone.spec.places["decoder.kv"].width
  table = {"parameterise": {"prompt": jnp.concatenate(pairs)}}
  model = PromptedModel(backbone, Prompt(P, Dense(tools.INIT), "decoder.kv"))
  params = {"backbone": weights, "prompt": table}
  found = model.logits(params, model.features(jnp.array([text]), answer))
  np.testing.assert_allclose(
    found, bare.logits({"backbone": weights}, typed), atol=2e-5
  )


def test_whole_groups_of_heads_may_change_places():
  backbone, weights = tools.loaded("llama_tied")
  config, model = backbone.config, PromptedModel(backbone)
  N, G, D = config.num_heads, config.num_kv_heads, config.head_dim
  assert 1 < G < N

  def turned(kernel, heads, axis):
    split = jnp.split(kernel, heads, axis=axis)
    step = heads // G
    groups = [split[i : i + step] for i in range(0, heads, step)]
    return jnp.concatenate([x for group in groups[::-1] for x in group], axis)

  other = jax.tree.map(lambda x: x, weights)
  for i in range(config.num_decoder_layers):
    own = other["decoder"][f"layers_{i}"]["self_attention"]
    for name, heads in (("query", N), ("key", G), ("value", G), ("out", N)):
      axis = 0 if name == "out" else 1
      own[name]["kernel"] = turned(own[name]["kernel"], heads, axis)
  _, batch = batch_of(model, examples())
  one, two = (logits(model, {"backbone": w}, batch) for w in (weights, other))
  close(two, one)
  assert own["key"]["kernel"].shape[1] == G * D


@pytest.mark.parametrize("name", tools.FEW)
def test_int8_and_bfloat16_are_near(name):
  model, params = tools.prompted(name, "decoder.kv")
  _, batch = batch_of(model, examples())
  wanted = logits(model, params, batch)
  scale = float(jnp.abs(wanted).max())
  narrow = {**params, "backbone": int8.tree(params["backbone"])}
  shapes = model.backbone.recast(weights_dtype="int8").held_shapes()
  jax.tree.map(lambda x, y: x.shape == y.shape or 1 / 0, shapes, narrow["backbone"])
  assert jnp.abs(logits(model, narrow, batch) - wanted).max() < 0.1 * scale
  half = dataclasses.replace(model, backbone=model.backbone.recast(dtype="bfloat16"))
  found = logits(half, params, batch)
  assert found.dtype == jnp.float32
  assert 0 < jnp.abs(found - wanted).max() < 0.15 * scale

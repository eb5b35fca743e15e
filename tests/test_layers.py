"""Prompts in the layers against plain concatenation, and what reads their states."""

import dataclasses
import functools
import os

import jax
import jax.numpy as jnp
import method_tools as tools
import numpy as np
import pytest
import test_places as plain

from prompt_tuning.backbones.common import layered
from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.backbones.t5.stacking import stack_layers
from prompt_tuning.conditions.pooled import Embeddings
from prompt_tuning.core.injection import Injection
from prompt_tuning.core.layers import Layers, Part
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.core.places import At, AtLayers
from prompt_tuning.core.prompt import Prompt, Together
from prompt_tuning.core.trainable import flatten
from prompt_tuning.data.features import Layout, pad
from prompt_tuning.data.packing import pack
from prompt_tuning.decoding import decode
from prompt_tuning.inits import uniform
from prompt_tuning.outputs.text import Greedy
from prompt_tuning.parameterisers import states as words
from prompt_tuning.parameterisers.dense import Dense
from prompt_tuning.parameterisers.mlp import Bottleneck

# T and U count reserved positions: all cases then share what they compile.
H, B, P, T, U = 12, plain.B, 3, 15, 13
# Deep enough for layers before, at and behind the first one.
CONFIG = dataclasses.replace(
  plain.CONFIG, num_encoder_layers=4, num_decoder_layers=3, dropout_rate=0.0
)
BACKBONE = T5(CONFIG)
PARAMS = tools.random_params(BACKBONE.shapes())
SCANNED = T5(dataclasses.replace(CONFIG, scan_layers=True))
REMAT = T5(dataclasses.replace(CONFIG, remat_policy="full"))
BOTH = pytest.mark.parametrize(
  "backbone", [BACKBONE, SCANNED], ids=["unrolled", "scanned"]
)
WIDTH = 5


def weights(backbone):
  scanned = backbone.config.scan_layers
  return stack_layers(PARAMS, backbone.config) if scanned else PARAMS


def table(side="encoder", length=P, **options):
  site = AtLayers(f"{side}.layers", **options)
  return Prompt(length, Dense(uniform.normal()), site)


def reader(word, length=P, **options):
  return Prompt(length, word, AtLayers(**options))


POOLED = words.Pooled(WIDTH, prompt_dropout_rate=0.0)
AVERAGE = words.Segments(WIDTH, "average", prompt_dropout_rate=0.0)
MAXIMUM = words.Segments(WIDTH, "maximum", prompt_dropout_rate=0.0)
INPUT = Prompt(2, Dense(uniform.normal()), "encoder.input")
OUTPUT = Prompt(2, Dense(uniform.normal()), "decoder.input")
PREFIX = Prompt(2, Dense(uniform.normal()), "decoder.kv")
CASES = {
  "deep": table(),
  "from 2": table(first=2),
  "add": table(add=True),
  "add from 1": table(first=1, add=True),
  "late": table(first=None, once=True),
  "last": table(first=3, once=True),
  "decoder": table("decoder"),
  "decoder add from 1": table("decoder", first=1, add=True),
  "decoder late": table("decoder", first=2, once=True),
  "beside an input": Together((INPUT, table(first=2, once=True))),
  "latest first": Together(
    (table(first=3, once=True, length=2), table(first=1, add=True), INPUT)
  ),
  "beside all of the decoder": Together(
    (table("decoder", first=1, once=True), OUTPUT, PREFIX, table("decoder", add=True))
  ),
  "npg": reader(POOLED, first=2, once=True),
  "appg": reader(AVERAGE, first=2, once=True),
  "mppg": reader(MAXIMUM, first=1, once=True),
  "m": reader(POOLED, first=0, add=True),
  "m from 1": reader(POOLED, first=1),
  "generated": Prompt(P, Bottleneck(WIDTH), AtLayers(first=1), Embeddings()),
  "reader beside table": Together((reader(POOLED, first=2, once=True), table())),
  "mixed": Together(
    (
      reader(MAXIMUM, first=3, once=True, length=2),
      reader(AVERAGE, first=2, once=True),
      reader(POOLED, first=1, add=True),
      table("decoder", first=1, once=True),
    )
  ),
}
# Together these hold every kind of part.
CHOSEN = ["latest first", "beside all of the decoder", "mixed"]
THOROUGH = bool(os.environ.get("PROMPT_TUNING_THOROUGH"))
SCANS = CHOSEN[1:]
if THOROUGH:
  CHOSEN = SCANS = list(CASES)
# The walks that are compared with unrolled layers.
WALKS = {"scanned": SCANNED, "recomputed": REMAT}


@functools.cache
def drawn(name):
  model = PromptedModel(BACKBONE, CASES[name])
  shapes = model.prompt_shapes(PARAMS)
  return tools.random_params(shapes, 0.6, salt=name)


def layout_of(model, more=0):
  lengths = [model.lengths.get(side, 0) for side in ("encoder", "decoder")]
  return Layout(T - lengths[0] + more, U - lengths[1], *lengths)


def batch_of(model, rows=plain.EXAMPLES, more=0):
  layout = layout_of(model, more)
  rows = [pad(layout.convert(row), layout.lengths) for row in rows]
  return {k: jnp.asarray(np.stack([row[k] for row in rows])) for k in rows[0]}


def run(name, backbone=BACKBONE, prompt=None, params=None, batch=None):
  """Logits [B U V] of the text alone."""
  model = PromptedModel(backbone, prompt or CASES[name])
  params = drawn(name) if params is None else params
  batch = batch_of(model) if batch is None else batch
  found = model.logits({"backbone": weights(backbone), "prompt": params}, batch)
  return np.asarray(found)[:, model.lengths.get("decoder", 0) :]


def real(logits):
  """Those of real targets, one behind the other."""
  rows = zip(logits, plain.EXAMPLES, strict=True)
  return np.concatenate([row[: len(one["targets"])] for row, one in rows])


# ---- the oracle: prompts are put in by concatenation, where they come in


class Plain(plain.Plain):
  """The oracle of places on this file's backbone; a reader is asked in numpy."""

  def placed(self, parts, layer, x):
    before = sum(part.length for part in parts if part.first < layer)
    front = self.held.get("encoder.input", ())
    text = x[before + len(front) :]
    made = []
    for part in parts:
      if part.reader is not None and part.first <= layer:
        own = jax.tree.map(lambda a, p=part: a[layer - p.first], part.reader.own)
        once = part.once and layer > part.first
        rows = np.zeros((1, H)) if once else generated(part, own, text)
        # Only this layer's table is looked at.
        count = 1 if part.once else layer - part.first + 1
        part = part.replace(tables=np.stack([rows] * count)[None])
      made.append(part)
    return super().placed(made, layer, x)


def unit(x):
  return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6)


def generated(part, own, text):
  """What a generator makes of the states of one text [T H]."""
  shared = jax.tree.map(lambda x: np.asarray(x, np.float64), part.reader.shared)
  down, up = ((shared[f"{x}_kernel"], shared.get(f"{x}_bias")) for x in ("down", "up"))
  if isinstance(part.reader.make, words.MakePooled):
    hidden = np.maximum(unit(text.mean(0)) @ down[0] + down[1], 0)
    return (hidden @ up[0]).reshape(-1, H) + np.asarray(own["up_bias"])
  q, size, rows = unit(text) @ down[0] + down[1], len(text), []
  pool = np.mean if part.reader.make.pool == "average" else np.max
  for p in range(part.length):
    first, end = p * size // part.length, -(-(p + 1) * size // part.length)
    rows.append(pool(q[first:end], axis=0))
  return np.maximum(rows, 0) @ up[0] + up[1]


def on_this_backbone(patch):
  """The oracle of places then reads this file's weights."""
  wide = jax.tree.map(lambda x: np.asarray(x, np.float64), PARAMS)
  patch.setattr(plain, "CONFIG", CONFIG)
  patch.setattr(plain, "WEIGHTS", wide)


@functools.cache
def wanted(name):
  model = PromptedModel(BACKBONE, CASES[name])
  params = {"backbone": PARAMS, "prompt": drawn(name)}
  found = model.inject(params, batch_of(model))
  with pytest.MonkeyPatch.context() as patch:
    on_this_backbone(patch)
    return np.concatenate([Plain(found, row).logits() for row in range(B)])


@pytest.mark.parametrize("name", CHOSEN)
def test_plain_concatenation(name):
  tools.assert_close(real(run(name)), wanted(name), 3e-5)


@pytest.mark.parametrize("name", SCANS)
def test_scanned_layers(name):
  tools.assert_close(real(run(name, SCANNED)), wanted(name), 3e-5)


@pytest.mark.parametrize("name", CASES if THOROUGH else ["generated", "mixed"])
def test_packed_rows(name):
  """Each example of a row has its own prompt, made of its own states alone."""
  model = PromptedModel(BACKBONE, CASES[name], segments=3)
  layout = layout_of(model)
  rows = list(pack([layout.convert(row) for row in plain.EXAMPLES], 40, 20, 3))
  assert len(rows) < B
  batch = {k: jnp.asarray(np.stack([row[k] for row in rows])) for k in rows[0]}
  params = {"backbone": PARAMS, "prompt": drawn(name)}
  found = np.asarray(jax.jit(model.logits)(params, batch))
  alone, left = run(name), set(range(B))
  for b, s in np.ndindex(len(rows), 3):
    text = (rows[b]["segment_ids"] == s + 1) & (rows[b]["prompt_index"] < 0)
    for number, row in enumerate(plain.EXAMPLES):
      if np.array_equal(rows[b]["inputs"][text], row["inputs"]):
        mine = rows[b]["decoder_segment_ids"] == s + 1
        mine &= rows[b]["decoder_prompt_index"] < 0
        tools.assert_close(found[b][mine], alone[number, : mine.sum()], 3e-5)
        left.remove(number)
  assert not left


@BOTH
def test_decoding_equals_reading_the_whole_target(backbone):
  """The cache keeps keys of slots that lower layers must not see."""
  name = "beside all of the decoder"
  model = PromptedModel(backbone, CASES[name])
  params = {"backbone": weights(backbone), "prompt": drawn(name)}
  batch = batch_of(model)
  steps = jax.jit(
    lambda params, batch: decode.generate(model, params, batch, Greedy(4))
  )
  ids, total = jax.device_get(steps(params, batch))
  rows = [
    {**row, "targets": np.append(own, 1).astype(np.int32)}
    for row, own in zip(plain.EXAMPLES, ids, strict=True)
  ]
  logits = run(name, backbone, batch=batch_of(model, rows))
  chances = np.asarray(jax.nn.log_softmax(logits))
  for row in range(B):
    end = list(ids[row]).index(1) + 1 if 1 in ids[row] else 4
    np.testing.assert_array_equal(chances[row].argmax(-1)[:end], ids[row][:end])
    said = chances[row, np.arange(end), ids[row][:end]].sum()
    np.testing.assert_allclose(said, total[row], rtol=0, atol=1e-4)


@functools.cache
def gradients(backbone):
  model = PromptedModel(backbone, CASES["mixed"])
  held, batch = weights(backbone), batch_of(model)

  def loss(params):
    logits = model.logits({"backbone": held, "prompt": params}, batch)
    return jnp.square(jax.nn.log_softmax(logits)).mean()

  return jax.jit(jax.grad(loss))(drawn("mixed"))


@pytest.mark.parametrize("walk", WALKS if THOROUGH else ["scanned"])
def test_gradients_of_all_walks(walk):
  """All walks of the layers give one gradient, and every leaf has it."""
  want, found = gradients(BACKBONE), gradients(WALKS[walk])
  for path, leaf in flatten(want).items():
    assert np.abs(leaf).max() > 1e-6, path
    np.testing.assert_allclose(flatten(found)[path], leaf, rtol=0, atol=3e-4)


# ---- relations


class Watched(plain.Plain):
  """Keeps the states that each encoder layer reads."""

  def placed(self, parts, layer, x):
    self.seen.append(x)
    return x


def test_tables_of_the_states_of_an_input_prompt_are_that_prompt():
  prompt = Prompt(P, Dense(uniform.normal()), "encoder.input")
  model = PromptedModel(BACKBONE, prompt)
  params, batch = tools.random_params(model.prompt_shapes(PARAMS)), batch_of(model)
  found = model.inject({"backbone": PARAMS, "prompt": params}, batch)
  tables = []
  with pytest.MonkeyPatch.context() as patch:
    on_this_backbone(patch)
    for row in range(B):
      one = Watched(found, row)
      one.seen = []
      one.logits()
      tables.append(np.stack([x[:P] for x in one.seen[: CONFIG.num_encoder_layers]]))
  record = Layers((Part(jnp.asarray(np.stack(tables), jnp.float32), length=P),))
  given = Injection({"encoder.layers": record})
  encoded = BACKBONE.encode(PARAMS, batch, given)[0]
  wanted, mask = BACKBONE.encode(PARAMS, batch, found)
  text = mask & (batch["prompt_index"] < 0)
  tools.assert_close(encoded[text], wanted[text], 3e-5)


def test_once_from_the_start_is_a_prompt_at_the_input():
  """Slots that a mask leaves out included."""
  batch = batch_of(PromptedModel(BACKBONE, table()))
  tables = jnp.asarray(np.random.default_rng(3).normal(size=(B, 1, P, H)), jnp.float32)
  mask = jnp.asarray(np.arange(P)[None] < np.array([3, 1, 2, 0])[:, None])
  encoded = []
  for site in (At("encoder.input"), AtLayers(once=True)):
    record = site(tables, mask, BACKBONE.spec)
    encoded.append(BACKBONE.encode(PARAMS, batch, Injection({site.place: record})))
  (first, seen), (second, same) = encoded
  np.testing.assert_array_equal(seen, same)
  assert np.asarray(seen).sum() < np.asarray(batch["inputs"] > 0).sum()
  np.testing.assert_array_equal(first[seen], second[seen])


def zeroed(params, *names):
  return {
    "parameterise": {
      name: leaf * (name not in names) for name, leaf in params["parameterise"].items()
    }
  }


@pytest.mark.parametrize("name, same", [("npg", "from 2 once"), ("m", "add")])
def test_a_silent_generator_is_its_static_table(name, same):
  options = {"first": 2, "once": True} if "once" in same else {"add": True}
  params = zeroed(drawn(name), "up_kernel")
  static = {"parameterise": {"prompt": params["parameterise"]["up_bias"]}}
  found = run(name, params=params)
  np.testing.assert_array_equal(
    found, run(None, prompt=table(**options), params=static)
  )


def test_once_is_adding_nothing_and_first_is_no_part_of_it():
  """A late table is an added one whose later tables are zero."""
  late = drawn("late")["parameterise"]["prompt"]
  added = {"parameterise": {"prompt": jnp.concatenate([late, jnp.zeros_like(late)])}}
  found = run(None, prompt=table(first=2, add=True), params=added)
  tools.assert_close(real(found), real(run("late")))


def test_stretches_of_texts():
  """Adaptive pooling, checked by hand for texts shorter and longer than P."""
  text = np.arange(7)[None, None] < np.array([7, 3, 2, 0])[:, None, None]
  held = np.asarray(words.stretches(jnp.asarray(text), 3))
  spans = {0: [(0, 3), (2, 5), (4, 7)], 1: [(0, 1), (1, 2), (2, 3)]}
  spans |= {2: [(0, 1), (0, 2), (1, 2)], 3: [(0, 0)] * 3}
  for row, (p, span) in ((r, x) for r in spans for x in enumerate(spans[r])):
    np.testing.assert_array_equal(np.flatnonzero(held[row, 0, p]), range(*span))
  q = jnp.asarray(np.random.default_rng(0).normal(size=(4, 7, 5)) - 3, jnp.float32)
  means, most = words.average(q, held), words.maximum(q, held)
  tools.assert_close(means[1, 0], q[1, :3])
  np.testing.assert_array_equal(most[1, 0], q[1, :3])
  tools.assert_close(most[0, 0, 1], q[0, 2:5].max(0))
  assert (most >= means - 1e-6).all()
  assert not np.asarray(means[3]).any() and not np.asarray(most[3]).any()


def test_gaps_and_pads_change_no_stretch():
  """The text may stand anywhere in its row, in pieces."""
  dense = words.stretches(jnp.ones((1, 1, 5), bool), 3)
  gaps = np.array([[[0, 1, 1, 0, 0, 1, 1, 1, 0]]], bool)
  loose = words.stretches(jnp.asarray(gaps), 3)
  np.testing.assert_array_equal(loose[..., gaps[0, 0]], dense)
  assert not np.asarray(loose[..., ~gaps[0, 0]]).any()


# ---- what it costs


def test_without_such_a_place_nothing_is_done(monkeypatch):
  for name in ("write", "hidden", "layered", "visible"):
    monkeypatch.setattr(layered, name, lambda *args: pytest.fail("was asked"))
  both = Together((INPUT, OUTPUT, PREFIX))
  params = tools.random_params(PromptedModel(BACKBONE, both).prompt_shapes(PARAMS))
  assert np.isfinite(run(None, prompt=both, params=params)).all()


def products(first):
  model = PromptedModel(BACKBONE, table(first=first, once=True))
  params = tools.random_params(model.prompt_shapes(PARAMS))
  batch = batch_of(model)

  def loss(params):
    return model.logits({"backbone": PARAMS, "prompt": params}, batch).sum()

  return str(jax.make_jaxpr(jax.grad(loss))(params)).count("dot_general")


def test_layers_below_a_late_prompt_need_no_backward_pass():
  counts = [products(first) for first in range(4)]
  assert counts == sorted(counts, reverse=True) and len(set(counts)) == 4


@pytest.mark.parametrize("backbone", [BACKBONE, SCANNED] if THOROUGH else [SCANNED])
def test_dropout_of_a_reader(backbone):
  """Drawn anew for each key and example; none without a key."""
  word = words.Pooled(WIDTH, dropout_rate=0.5, prompt_dropout_rate=0.5)
  model = PromptedModel(backbone, reader(word, add=True))
  params = {"backbone": weights(backbone), "prompt": drawn("m")}
  batch = batch_of(model, [plain.EXAMPLES[0]] * B)
  forward = jax.jit(model.logits)
  first, again, other = (
    np.asarray(forward(params, batch, jax.random.key(seed))) for seed in (0, 0, 1)
  )
  np.testing.assert_array_equal(first, again)
  assert np.abs(first - other).max() > 0.01
  assert np.abs(first[0] - first[1]).max() > 0.01
  still = np.asarray(forward(params, batch))
  tools.assert_close(still[0], still[1])


@BOTH
def test_exported_with_batch_and_length_free(backbone):
  model = PromptedModel(backbone, CASES["mixed"])
  params = {"backbone": weights(backbone), "prompt": drawn("mixed")}
  batch = batch_of(model)
  rows, tokens = jax.export.symbolic_shape("b, t", constraints=["t >= 8"])
  free = {
    name: jax.ShapeDtypeStruct(
      (rows, tokens if name in ("inputs", "prompt_index") else U), x.dtype
    )
    for name, x in batch.items()
  }
  program = jax.export.export(jax.jit(model.logits))(params, free)
  longer = batch_of(model, plain.EXAMPLES[:2], more=3)
  found = program.call(params, longer)
  tools.assert_close(found, model.logits(params, batch)[:2], 3e-5)


def test_the_padded_bias_of_a_kernel():
  """Kernels take lengths of whole blocks: what is behind the keys stays as it was."""
  held = Layers((Part(jnp.ones((1, 1, P, H)), length=P, first=2, once=True),))
  index = jnp.asarray([[0, 1, 2, -1, -1]])
  found = layered.layered(held, 4, False, index, front=1)
  bias = jnp.ones((1, 2, 5, 8), jnp.bfloat16)
  for layer, sees in ((0, False), (1, False), (2, True), (3, True)):
    own = layered.hidden(bias, found.layers[layer], found.slots)
    assert own.shape == bias.shape and own.dtype == bias.dtype
    want = np.ones(8, bool) if sees else np.array([1, 0, 0, 0, 1, 1, 1, 1], bool)
    np.testing.assert_array_equal(np.asarray(own[0, 0, 0]) > 0, want)


# ---- what is refused


@pytest.mark.parametrize(
  "make, words_",
  [
    (lambda: AtLayers("encoder.kv"), "must end in .layers"),
    (lambda: AtLayers(add=True, once=True), "not both"),
    (lambda: AtLayers(first=4).tables(BACKBONE.spec), "are 0 to 3 in this"),
    (lambda: AtLayers(first=-1).tables(BACKBONE.spec), "are 0 to 3 in this"),
    (lambda: Prompt(P, POOLED, "encoder.input"), "its place is 'encoder.layers'"),
    (lambda: Prompt(P, POOLED, "decoder.layers"), "its place is 'encoder.layers'"),
    (lambda: reader(POOLED, factor=2.0), "Leave them out"),
    (lambda: words.Pooled(0), "GENERATOR_WIDTH.* got 0"),
    (lambda: words.Pooled(3, "tanh"), "must be one of .*'relu', 'gelu'"),
    (lambda: words.Segments(3, "median"), "got 'median'"),
    (
      lambda: PromptedModel(BACKBONE, reader(AVERAGE)).prompt_shapes(PARAMS),
      "asks for 4. Bind `AtLayers.once = True`",
    ),
  ],
)
def test_what_does_not_fit(make, words_):
  with pytest.raises(ValueError, match=words_):
    make()


def test_rows_of_a_reader_are_not_picked():
  model = PromptedModel(BACKBONE, CASES["npg"])
  found = model.inject({"backbone": PARAMS, "prompt": drawn("npg")}, batch_of(model))
  with pytest.raises(ValueError, match="same weights for every example"):
    found.get("encoder.layers").pick(jnp.arange(2))

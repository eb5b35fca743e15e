"""What readers of layers make, what a late prompt costs, what does not fit."""

import jax
import jax.numpy as jnp
import method_tools as tools
import numpy as np
import pytest
import test_places as plain
from layer_tools import (
  AVERAGE,
  BACKBONE,
  BOTH,
  CASES,
  CONFIG,
  INPUT,
  OUTPUT,
  PARAMS,
  POOLED,
  PREFIX,
  SCANNED,
  THOROUGH,
  WIDTH,
  B,
  H,
  P,
  U,
  batch_of,
  drawn,
  on_this_backbone,
  reader,
  real,
  run,
  table,
  weights,
)

from prompt_tuning.backbones.common import layered
from prompt_tuning.core.injection import Injection
from prompt_tuning.core.layers import Layers, Part
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.core.places import At, AtLayers
from prompt_tuning.core.prompt import Prompt, Together
from prompt_tuning.inits import uniform
from prompt_tuning.parameterisers import states as words
from prompt_tuning.parameterisers.dense import Dense

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
    (
      lambda: PromptedModel(
        BACKBONE, Prompt(P, POOLED, "decoder.layers")
      ).prompt_shapes(PARAMS),
      "its place is 'encoder.layers'",
    ),
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

"""What must hold of an encoder whatever its weights: places, rows, positions."""

import dataclasses

import bert_tools as tools
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.backbones.bert.stacking import stack_layers
from prompt_tuning.backbones.common import int8
from prompt_tuning.core.backbone import Backbone, Writer
from prompt_tuning.core.forward import examples
from prompt_tuning.core.injection import Injection
from prompt_tuning.core.layers import Layers, Part
from prompt_tuning.core.places import KeysValues, Slots, kind_of
from prompt_tuning.data.batches import stack
from prompt_tuning.data.features import Layout, pad
from prompt_tuning.data.packing import pack

P, T, S = 3, 8, 3
KINDS = ("bert", "roberta")
PLACES = ("front", "after_first", "end")


def rng():
  return np.random.default_rng(4)


def rows(backbone, lengths=(5, 2, 7, 4)):
  """Task features: words and a closing mark; `read` opens them."""
  draw, ids = rng(), backbone.spec.ids
  words = [draw.integers(7, 40, n - 1) for n in lengths]
  return [
    {"inputs": np.append(row, ids.end).astype(np.int32), "labels": np.int32(i)}
    for i, row in enumerate(words)
  ]


def layout(backbone, prompt=0, place="after_first"):
  return Layout(T, 1, prompt, place=place, form=backbone.format)


def batch(backbone, given=None, prompt=0, place="after_first", more=0):
  laid = dataclasses.replace(layout(backbone, prompt, place), inputs=T + more)
  given = rows(backbone) if given is None else given
  found = [pad(laid.convert(row), laid.lengths, laid.form) for row in given]
  return {name: jnp.asarray(x) for name, x in stack(found).items()}


def injection(backbone, record, R=1):
  """Random vectors of a place, `record` its name."""
  tables = backbone.spec.places[record]
  positions = 1 if record.endswith((".scale", ".shift")) else P
  shape = R, tables.count, positions, tables.width
  vectors = jnp.asarray(0.5 * rng().normal(size=shape), jnp.float32)
  return Injection({record: kind_of(record).of(vectors, None)})


def views(backbone, params, given, asked=None, segments=1):
  reading = backbone.read(params, given, asked)
  found = [
    backbone.view(params, name, given, reading, segments=segments)
    for name in backbone.views
  ]
  return jnp.stack(found, axis=1)


@pytest.mark.parametrize("kind", KINDS)
def test_reads_and_does_not_write(kind):
  backbone, _ = tools.tiny(kind)
  assert isinstance(backbone, Backbone) and not isinstance(backbone, Writer)
  assert set(batch(backbone)) == {"inputs", "prompt_index", "labels"}
  ids = backbone.spec.ids
  assert ids.reserved not in (ids.pad, ids.start, ids.end)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", PLACES)
def test_slots_of_word_rows_are_these_words(kind, place):
  """Positions and types included: the slots are filled with rows of the table."""
  backbone, params = tools.tiny(kind)
  words = rng().integers(7, 40, P)
  held = Slots(backbone.table(params)[words][None])
  given = batch(backbone, prompt=P, place=place)
  found = backbone.read(params, given, Injection({"encoder.input": held}))
  index = np.asarray(given["prompt_index"])
  typed = np.where(index >= 0, words[index], given["inputs"])
  wanted = backbone.read(params, {"inputs": jnp.asarray(typed)})
  real = np.asarray(wanted.mask)
  tools.close(found.states[real], wanted.states[real])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", PLACES)
def test_first_is_read_at_its_own_index(kind, place):
  backbone, params = tools.tiny(kind)
  given = batch(backbone, prompt=P, place=place)
  asked = injection(backbone, "encoder.input")
  states = backbone.read(params, given, asked).states
  at = P if place == "front" else 0
  assert (np.asarray(given["inputs"])[:, at] == backbone.spec.ids.start).all()
  tools.close(views(backbone, params, given, asked)[:, 1], states[:, at], 0)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_company_change_nothing(kind):
  backbone, params = tools.tiny(kind)
  asked = injection(backbone, "encoder.input")
  plain = views(backbone, params, batch(backbone, prompt=P), asked)
  longer = views(backbone, params, batch(backbone, prompt=P, more=4), asked)
  tools.close(longer, plain)
  turned = batch(backbone, rows(backbone)[::-1], prompt=P)
  tools.close(views(backbone, params, turned, asked)[::-1], plain)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
  "place",
  ["encoder.input", "encoder.kv", "encoder.layers", "encoder.self.query.weight"],
)
def test_packed_equals_alone(kind, place):
  """Positions, types and the first token begin anew in each segment."""
  backbone, params = tools.tiny(kind)
  prompt = P if kind_of(place).positions else 0
  given, laid = rows(backbone), layout(backbone, prompt)
  count = len(given)
  own = injection(backbone, place, count)
  plain = views(backbone, params, batch(backbone, prompt=prompt), own)
  packed = list(pack(map(laid.convert, given), 2 * T + P, 0, S, form=laid.form))
  assert len(packed) < count
  many = {name: jnp.asarray(x) for name, x in stack(packed).items()}
  assert "decoder_segment_ids" not in many and "targets" not in many
  seen = np.asarray(examples(many, backbone.spec.ids, S))
  assert seen.sum() == count
  order = np.asarray(many["labels"]).reshape(-1)
  spread = jax.tree.map(lambda x: x[jnp.where(seen, order, 0)], own.held[place])
  found = views(backbone, params, many, Injection({place: spread}), S)
  tools.close(found[seen], plain[order[seen]])


@pytest.mark.parametrize("kind", KINDS)
def test_scanned_equals_unrolled(kind):
  backbone, params = tools.tiny(kind)
  stacked = stack_layers(params, backbone.config)
  held = {
    place: injection(backbone, place).held[place]
    for place in ("encoder.kv", "encoder.mlp.up.scale", "encoder.self.out.adapter")
  }
  asked = Injection(held)
  given = batch(backbone)
  scanned = views(backbone.recast(scan_layers=True), stacked, given, asked)
  tools.close(scanned, views(backbone, params, given, asked))


@pytest.mark.parametrize("place", sorted(tools.tiny()[0].spec.places))
def test_every_place_is_obeyed(place):
  backbone, params = tools.tiny()
  prompt = P if kind_of(place).positions else 0
  given = batch(backbone, prompt=prompt)
  found = views(backbone, params, given, injection(backbone, place))
  change = np.abs(found - views(backbone, params, given)).max()
  # One vector added to all keys adds one number to all scores of a query.
  assert change < 1e-4 if place == "encoder.self.key.shift" else change > 1e-2


def test_neutral_changes_change_nothing():
  backbone, params = tools.tiny()
  given = batch(backbone)
  for place, tables in backbone.spec.places.items():
    kind = place.rpartition(".")[2]
    if kind in ("scale", "shift", "weight", "adapter", "offset"):
      fill = jnp.ones if kind == "scale" else jnp.zeros
      vectors = fill((1, tables.count, 1, tables.width))
      asked = Injection({place: kind_of(place).of(vectors, None)})
      tools.close(views(backbone, params, given, asked), views(backbone, params, given))


def test_keys_and_values_stand_in_no_order_and_take_mass():
  backbone, params = tools.tiny()
  given, place = batch(backbone), "encoder.kv"
  asked = injection(backbone, place)
  turned = Injection({place: KeysValues(asked.held[place].vectors[:, :, ::-1])})
  plain = views(backbone, params, given, asked)
  tools.close(views(backbone, params, given, turned), plain)
  nothing = KeysValues(jnp.zeros_like(asked.held[place].vectors))
  empty = views(backbone, params, given, Injection({place: nothing}))
  assert np.abs(empty - views(backbone, params, given)).max() > 1e-2
  masked = KeysValues(nothing.vectors, jnp.zeros((1, P), bool))
  hidden = views(backbone, params, given, Injection({place: masked}))
  tools.close(hidden, views(backbone, params, given))


def test_a_late_part_is_hidden_until_its_layer():
  backbone, params = tools.tiny()
  table = jnp.asarray(rng().normal(size=(1, 1, P, backbone.spec.width)), jnp.float32)
  late = Layers((Part(table, length=P, first=1, once=True),))
  given = batch(backbone, prompt=P)
  found = backbone.read(params, given, Injection({"encoder.layers": late}))
  shorter = batch(backbone)
  bare = backbone.read(params, shorter)
  real = np.asarray(found.mask) & np.asarray(given["prompt_index"] < 0)
  assert np.abs(found.states[real] - bare.states[np.asarray(bare.mask)]).max() > 1e-2


def test_types_change_behind_the_first_mark():
  backbone, _ = tools.tiny()
  ids = jnp.asarray([[4, 9, 5, 8, 8, 5, 0], [4, 9, 9, 9, 9, 5, 0]])
  found = np.asarray(backbone._types(ids, None))
  np.testing.assert_array_equal(found[0], [0, 0, 0, 1, 1, 1, 1])
  np.testing.assert_array_equal(found[1, :6], 0)
  segments = jnp.asarray([[1, 1, 1, 2, 2, 2, 2]])
  packed = jnp.asarray([[4, 9, 5, 4, 9, 5, 9]])
  found = np.asarray(backbone._types(packed, segments))
  np.testing.assert_array_equal(found[0], [0, 0, 0, 0, 0, 0, 1])


def test_positions_of_a_roberta_begin_at_two():
  backbone, _ = tools.tiny("roberta")
  real = jnp.ones((1, 4), bool)
  np.testing.assert_array_equal(backbone._positions(real, None)[0], [2, 3, 4, 5])


def test_more_positions_than_there_are():
  backbone, params = tools.tiny()
  room = backbone.config.room
  Layout(room - P - 1, 1, P, form=backbone.format)
  with pytest.raises(ValueError, match=f"has {room} positions. Take {room - P - 1} "):
    Layout(room - P, 1, P, form=backbone.format)
  given = batch(backbone, more=room - T - 1)
  shifted = KeysValues(injection(backbone, "encoder.kv").held["encoder.kv"].vectors)
  backbone.read(params, given, Injection({"encoder.kv": shifted}))
  shifted = shifted.replace(shift=P)
  with pytest.raises(ValueError, match=f"Rows of {room} tokens behind {P} keys"):
    backbone.read(params, given, Injection({"encoder.kv": shifted}))


def test_int8_holds_matrices_and_stays_near():
  backbone, _ = tools.tiny()
  params = backbone.init(jax.random.key(5))
  narrow = int8.tree(params)
  kept = narrow["encoder"]["layers_0"]["attention"]["query"]
  assert isinstance(kept["kernel"], int8.Quantised) and kept["bias"].dtype == "float32"
  given = batch(backbone)
  found, wanted = (
    views(backbone.recast(weights_dtype="int8"), p, given) for p in (narrow, params)
  )
  assert 0 < np.abs(found - wanted).max() < 0.2

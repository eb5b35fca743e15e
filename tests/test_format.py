"""Rows are laid out alike with numpy, one example at a time, and with jax.numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.core.format import PLACES, Causal, EncoderDecoder
from prompt_tuning.core.ids import Ids
from prompt_tuning.data.features import Layout, pad

P = 2
FORMS = {
  "encoder-decoder": EncoderDecoder(),
  "causal": Causal(Ids(pad=-1, start=8, end=9, reserved=7)),
  "causal, own pad": Causal(Ids(pad=3, start=8, end=9, reserved=0)),
}
# 0 is a word where nothing else is said.
TEXTS = [[5, 6, 4], [4], [6, 5, 4, 5]]
TARGETS = [[6], [5, 4], [4, 4]]


def closed(form, ids):
  return np.array([*ids, form.ids.end], np.int32)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", FORMS)
def test_a_batch_is_its_examples_padded(name, place):
  form = FORMS[name]
  layout = Layout(6, 4, P, P, place, form=form)
  rows = [
    {"inputs": closed(form, text), "targets": closed(form, target), "mark": 1}
    for text, target in zip(TEXTS, TARGETS, strict=True)
  ]
  wanted = [pad(layout.convert(row), layout.lengths, form) for row in rows]
  shape = (len(rows), layout.inputs), (len(rows), layout.targets)
  inputs, targets = (np.full(one, form.ids.pad, np.int32) for one in shape)
  for i, row in enumerate(rows):
    ids = form.read_ids(row["inputs"])
    inputs[i, : len(ids)] = ids
    targets[i, : len(row["targets"])] = row["targets"]
  inputs, targets = jnp.asarray(inputs), jnp.asarray(targets)
  at = form.starts(inputs, place, jnp.ones(len(rows), jnp.int32), jnp)
  found = form.convert(inputs, targets, {"encoder": P, "decoder": P}, at, jnp)
  assert set(found) == set(form.features) == set(layout.lengths)
  real = np.array([form.ids.is_real(row["targets"]) for row in wanted])
  for feature, value in found.items():
    assert value.dtype == form.features[feature].dtype
    value, own = np.asarray(value), np.stack([row[feature] for row in wanted])
    if feature == "decoder_inputs":
      # What follows the last target is read by nobody.
      front = value.shape[1] - layout.targets
      value, own = value[:, front:][real[:, front:]], own[:, front:][real[:, front:]]
    np.testing.assert_array_equal(value, own, feature)


def test_a_causal_row_carries_its_last_word_over():
  form = FORMS["causal"]
  row = Layout(6, 4, 0, P, form=form).convert(
    {"inputs": closed(form, [0, 5]), "targets": closed(form, [6])}
  )
  assert row["inputs"].tolist() == [7, 7, 0, 5]
  assert row["prompt_index"].tolist() == [0, 1, -1, -1]
  assert row["decoder_inputs"].tolist() == [5, 6] and row["targets"].tolist() == [6, 9]
  # Of no text there is no last word.
  empty = Layout(6, 4, form=form).convert(
    {"inputs": closed(form, []), "targets": closed(form, [6])}
  )
  assert empty["inputs"].tolist() == [] and empty["decoder_inputs"].tolist() == [8, 6]


@pytest.mark.parametrize("pad_id", [-1, 0, 3])
def test_real_ids_are_all_but_the_pad(pad_id):
  ids = Ids(pad=pad_id, end=1, reserved=2)
  given = np.array([5, 0, 3, 1])
  np.testing.assert_array_equal(ids.is_real(given), given != pad_id)
  with pytest.raises(ValueError, match="Take -1"):
    Ids(pad=pad_id, end=1, reserved=pad_id)

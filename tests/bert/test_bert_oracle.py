"""States, pooled states and logits of Hugging Face's transformers."""

import bert_tools as tools
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.core.injection import Injection
from prompt_tuning.core.places import KeysValues

pytestmark = pytest.mark.parametrize("name", tools.NAMES)


def test_states(name):
  backbone, params, wanted = tools.golden(name)
  ids = jnp.asarray(wanted["ids"])
  real = np.asarray(backbone.spec.ids.is_real(ids))
  assert real.sum() < real.size
  found = backbone.read(params, {"inputs": ids})
  tools.close(found.states[real], wanted["states"][real])
  np.testing.assert_array_equal(found.mask, real)


def test_heads_of_the_file(name):
  backbone, params, wanted = tools.golden(name)
  reading = backbone.read(params, {"inputs": jnp.asarray(wanted["ids"])})
  assert backbone.config.pooler == ("pooled" in wanted)
  assert ("pooler" in backbone.views) == ("pooled" in wanted)
  if "pooled" in wanted:
    batch = {"inputs": jnp.asarray(wanted["ids"])}
    tools.close(backbone.view(params, "pooler", batch, reading), wanted["pooled"])
  if "logits" not in wanted:
    with pytest.raises(ValueError, match="no head of masked words"):
      backbone.logits(params, reading.states)
    return
  real = np.asarray(reading.mask)
  found = backbone.logits(params, reading.states)
  # Logits reach 8, sums of a few more numbers.
  tools.close(found[real], wanted["logits"][real], 4e-5)


def test_types(name):
  backbone, params, wanted = tools.golden(name)
  if "types" not in wanted:
    assert backbone.config.types == 1
    return
  ids, types = jnp.asarray(wanted["ids"]), jnp.asarray(wanted["types"])
  places = jnp.broadcast_to(jnp.arange(ids.shape[1])[None], ids.shape)
  mask = backbone.spec.ids.is_real(ids)
  given = backbone.embed(params, ids), places, types, mask
  found = backbone.apply(params, "encode", *given)
  tools.close(found[mask], wanted["typed"][np.asarray(mask)])
  assert np.abs(wanted["typed"] - wanted["states"])[np.asarray(mask)].max() > 0.1


def test_keys_and_values_that_take_positions(name):
  backbone, params, wanted = tools.golden(name)
  ids = jnp.asarray(wanted["ids"])
  real = np.asarray(backbone.spec.ids.is_real(ids))
  kv = jnp.asarray(wanted["kv"])[None]
  shifted, still = (
    backbone.read(
      params, {"inputs": ids}, Injection({"encoder.kv": KeysValues(kv, shift=n)})
    ).states
    for n in (kv.shape[2], 0)
  )
  tools.close(shifted[real], wanted["behind_kv"][real])
  assert np.abs(still[real] - wanted["behind_kv"][real]).max() > 0.1

"""The network and the beams agree with T5X's own, see goldens/make_t5x_goldens.py."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens import weights

from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.backbones.t5.config import T5Config
from prompt_tuning.core.model import PromptedModel, features
from prompt_tuning.decoding import beam, decode
from prompt_tuning.outputs import text

GOLDENS = np.load(pathlib.Path(__file__).parent / "goldens" / "t5x_minimal.npz")
# What T5X's beam search gives to a place that holds no ended sequence.
EMPTY = -1e6


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
  """These programs run once: compiling them well takes longer than running them."""
  before = jax.config.read("jax_disable_most_optimizations")
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", before)


@functools.cache
def model(name):
  backbone = T5(T5Config(**weights.CONFIGS[name]))
  return backbone, jax.tree.map(jnp.asarray, weights.nested(weights.tiny_weights(name)))


def golden(name, key):
  return GOLDENS[f"{name}/{key}"]


@pytest.mark.parametrize("name", weights.CONFIGS)
@pytest.mark.parametrize("packed", [False, True])
def test_logits_equal_those_of_t5x(name, packed):
  backbone, params = model(name)
  batch = features(golden(name, "inputs"), golden(name, "targets"), {})
  if packed:
    batch["segment_ids"] = jnp.asarray(golden(name, "segment_ids"))
    batch["decoder_segment_ids"] = jnp.asarray(golden(name, "target_segment_ids"))
  run = jax.jit(lambda params: PromptedModel(backbone).logits(params, batch))
  found = np.asarray(run({"backbone": params}))
  # T5X masks what stands behind a row's last target, and there nothing is scored.
  real = golden(name, "targets") > 0
  wanted = golden(name, "packed_logits" if packed else "logits")
  np.testing.assert_allclose(found[real], wanted[real], rtol=0, atol=1e-4)
  assert np.abs(wanted).max() > 1


def test_packing_changes_what_t5x_sees():
  for name in weights.CONFIGS:
    apart = golden(name, "packed_logits") - golden(name, "logits")
    assert np.abs(apart).max() > 0.1


@pytest.mark.parametrize("name", weights.CONFIGS)
def test_beams_and_their_scores_equal_those_of_t5x(name):
  backbone, params = model(name)
  wanted, scores = golden(name, "beam"), golden(name, "beam_scores")
  _, K, U = wanted.shape
  batch = {"inputs": jnp.asarray(golden(name, "inputs"))}
  settings = text.Beam(U, beams=K, alpha=0.6)
  run = jax.jit(
    lambda params: decode.generate(PromptedModel(backbone), params, batch, settings)
  )
  ids, log_probs = map(np.asarray, run({"backbone": params}))
  full = scores > EMPTY
  assert full[:, 0].all() and full.sum() > full.size / 2
  np.testing.assert_array_equal(ids[full], wanted[full])
  ended = (ids == 1).any(-1)
  penalty = beam.length_penalty("brevity", 0.6, (ids == 1).argmax(-1) + 1)
  # A row of which nothing ended comes back with log-probabilities as they are.
  found = np.where(ended, log_probs / penalty, log_probs)
  np.testing.assert_allclose(found[full], scores[full], atol=1e-4)

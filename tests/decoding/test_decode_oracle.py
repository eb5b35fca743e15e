"""Decoding agrees with Hugging Face's `generate`, token for token."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens import weights

from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.backbones.t5.config import T5Config
from prompt_tuning.backbones.t5.stacking import stack_layers
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.decoding import decode
from prompt_tuning.outputs import text

GOLDENS = np.load(pathlib.Path(__file__).parents[1] / "goldens" / "t5_generate.npz")


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
  """These programs run once: compiling them well takes longer than running them."""
  before = jax.config.read("jax_disable_most_optimizations")
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", before)


@functools.partial(jax.jit, static_argnames=("model", "decoder"))
def generate(model, params, batch, decoder):
  return decode.generate(model, params, batch, decoder)


def run(name, decoder, **changes):
  config = T5Config(**weights.CONFIGS[name], **changes)
  params = weights.nested(weights.tiny_weights(name))
  if config.scan_layers:
    params = stack_layers(params, config)
  batch = {"inputs": jnp.asarray(GOLDENS[f"{name}/inputs"])}
  ids, log_probs = generate(
    PromptedModel(T5(config)), {"backbone": params}, batch, decoder
  )
  return np.asarray(ids), np.asarray(log_probs)


@pytest.mark.parametrize("name", weights.CONFIGS)
def test_greedy(name):
  wanted = GOLDENS[f"{name}/greedy"]
  ids, _ = run(name, text.Greedy(wanted.shape[-1]))
  np.testing.assert_array_equal(ids, wanted)


@pytest.mark.parametrize(
  ("name", "scan_layers"), [("t5_1_0", False), ("t5_1_1", False), ("t5_1_1", True)]
)
def test_beams(name, scan_layers):
  """Scanned layers keep their caches under another axis; beams must find it."""
  wanted, scores = GOLDENS[f"{name}/beam"], GOLDENS[f"{name}/beam_scores"]
  _, K, U = wanted.shape
  decoder = text.Beam(U, beams=K, alpha=1.0, length_penalty="power")
  ids, log_probs = run(name, decoder, scan_layers=scan_layers)
  np.testing.assert_array_equal(ids, wanted)
  ended = (ids == 1).any(-1)
  lengths = np.where(ended, (ids == 1).argmax(-1) + 1, U)
  np.testing.assert_allclose(log_probs / lengths, scores, atol=1e-5)

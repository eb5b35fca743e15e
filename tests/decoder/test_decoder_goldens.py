"""Decoders compute what transformers computes, in float32."""

import decoder_tools as tools
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.api import Model
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.core.prompt import Prompt
from prompt_tuning.decoding import decode, score
from prompt_tuning.inits import uniform
from prompt_tuning.interop.load import Loaded
from prompt_tuning.outputs.text import Greedy
from prompt_tuning.parameterisers.dense import Dense

pytestmark = pytest.mark.parametrize("name", tools.NAMES)


def test_logits_are_those_of_transformers(name):
  backbone, weights = tools.loaded(name)
  model = Model(Loaded(backbone, weights, None, name))
  logits = model.logits(tools.found()["ids"])
  wanted = tools.found()[f"{name}/logits"]
  # Sums of a dozen products in another order: 1e-5 of the largest.
  np.testing.assert_allclose(logits, wanted, atol=1e-4, rtol=1e-5)


def test_the_mean_cross_entropy_and_its_gradient_are(name):
  """At the embeddings of the tokens, which a prompt of that many rows replaces."""
  backbone, weights = tools.loaded(name)
  ids = jnp.asarray(tools.found()["ids"])
  B, X = ids.shape
  prompt = Prompt(X, Dense(uniform.symmetric(1.0)), "decoder.input")
  model = PromptedModel(backbone, prompt)
  batch = model.features(jnp.zeros((1, 0), jnp.int32), ids[:1, :1])
  prompts = backbone.embed(weights, ids)

  def loss(prompt_XH, row_X):
    params = {"backbone": weights, "prompt": {"parameterise": {"prompt": prompt_XH}}}
    reading, _ = model.read(params, batch)
    logits = backbone.logits(weights, reading.states[0, :-1])
    shares = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(shares, row_X[1:, None], 1).sum()

  losses, gradients = jax.vmap(jax.value_and_grad(loss))(prompts[:, None], ids)
  count = B * (X - 1)
  wanted = tools.found()
  np.testing.assert_allclose(losses.sum() / count, wanted[f"{name}/loss"], rtol=1e-5)
  found = gradients[:, 0] / count
  gradient = wanted[f"{name}/gradient"]
  assert np.abs(gradient).max() > 1e-2
  np.testing.assert_allclose(found, gradient, atol=1e-5, rtol=1e-4)


def test_greedy_continuations_are(name):
  """Texts of several lengths in one batch, against each alone."""
  backbone, weights = tools.loaded(name)
  found, params = tools.found(), {"backbone": weights}
  rows = [
    row[:length] for row, length in zip(found["ids"], found["lengths"], strict=True)
  ]
  wanted = found[f"{name}/written"]
  model = PromptedModel(backbone)
  batch = {"inputs": tools.padded(rows, 11)}
  ids, log_probs = decode.generate(model, params, batch, Greedy(wanted.shape[1]))
  for b, row in enumerate(np.asarray(ids)):
    ends = np.flatnonzero(row == 2)
    kept = wanted.shape[1] if len(ends) == 0 else ends[0] + 1
    np.testing.assert_array_equal(row[:kept], wanted[b, :kept])
    assert (row[kept:] == -1).all()
  # The same sum by teacher forcing.
  features = model.features(batch["inputs"], ids)
  np.testing.assert_allclose(score.score(model, params, features), log_probs, atol=2e-4)

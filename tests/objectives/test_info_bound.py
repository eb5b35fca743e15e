"""InfoPrompt's bound against numpy, and noise of words."""

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import method_tools as tools
import numpy as np
import pytest
from forward_tools import LABELS, WORDS, run

from prompt_tuning.core import trainable as branches
from prompt_tuning.core.forward import Forward
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.engine import terms
from prompt_tuning.objectives.info_bound import InfoBound

# ---- InfoPrompt


@pytest.fixture(scope="module")
def informed(case, batch):
  term = InfoBound(width=3).bound(WORDS, LABELS)
  own = terms.branch(term, case.model, case.params, 0)
  # Away from the start, where biases are 0.
  own = tools.random_params(own, salt="info")
  return term, {**case.params, **own}


def test_info_bound_has_the_numbers_of_its_sheet(case, informed):
  term, params = informed
  H, n, C = tools.H, 3, len(LABELS)
  count = C * H + (H * H + H) + 2 * (H * n + n) + (n * H + H)
  assert branches.count(params["objective"]) == count
  drawn = terms.branch(term, case.model, case.params, 0)["objective"]["info"]
  ids = jnp.asarray(tools.encode(LABELS[0]))
  rows = case.model.backbone.embed(case.params["backbone"], ids)
  tools.assert_close(drawn["words"][0], rows.mean(0))


def test_info_bound_against_numpy(case, batch, informed):
  term, params = informed
  loss, gradient, (found,) = run(term, case.model, params, batch)
  own = jax.tree.map(lambda x: np.asarray(x, np.float64), params["objective"]["info"])
  backbone = case.model.backbone
  tokens = np.asarray(backbone.embed(params["backbone"], batch["inputs"]), np.float64)
  text = (np.asarray(batch["inputs"]) > 0) & (np.asarray(batch["prompt_index"]) < 0)
  q = (
    np.asarray(params["prompt"]["parameterise"]["prompt"]).reshape(-1, tools.H).mean(0)
  )
  c = own["words"].mean(0)

  def cosine(a, b):
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)

  def affine(name, x):
    return x @ own[name]["kernel"] + own[name]["bias"]

  # The state at the first target, and without a prompt at all.
  first = np.asarray(case.model.states(params, batch), np.float64)[:, 0]
  bare = tools.case("unprompted")
  bare_model = PromptedModel(backbone)
  bare_batch = dataclasses.replace(bare, model=bare_model, rows=case.rows).batch()
  bare_batch |= {
    name: batch[name] for name in ("targets", "decoder_inputs", "decoder_prompt_index")
  }
  alone = {"backbone": params["backbone"]}
  unprompted = np.asarray(bare_model.states(alone, bare_batch), np.float64)[:, 0]
  kl, outs = 0.0, []
  for f in (first, unprompted):
    mean, spread = affine("mean", f), np.clip(affine("spread", f), -2, 10)
    kl = kl + ((np.exp(2 * spread) + mean**2 - 1) / 2 - spread).sum(-1)
    outs.append(affine("out", mean))
  k, B = affine("key", q), len(first)
  others = np.exp(cosine(outs[1], k) / 0.1).sum() * 4
  total = 0.0
  for b in range(B):
    s = np.exp(cosine(q, c) / 0.1)
    head = -np.log(s / (s + np.exp(cosine(tokens[b][text[b]], c) / 0.1).sum()))
    s = np.exp(cosine(outs[0][b], k) / 0.1)
    total += 0.1 * head + 0.2 * -np.log(s / (s + others)) + 0.1 * kl[b]
  assert loss == pytest.approx(total / B, rel=1e-4)
  bounds = {name: float(x / w) for name, (x, w) in found.metrics.items()}
  assert bounds["info_bound_text"] <= np.log(4 * B + 1)
  flat = branches.flatten(gradient)
  assert all(np.isfinite(x).all() and np.abs(x).max() > 0 for x in flat.values())


def test_the_key_of_info_bound_hands_no_gradient_to_the_prompt(case, batch, informed):
  term, params = informed
  text = dataclasses.replace(term, gamma=0.0, kl=0.0)
  _, gradient, _ = run(text, case.model, params, batch)
  assert any(np.abs(x).max() > 1e-7 for x in jax.tree.leaves(gradient["prompt"]))
  # Cut off the backbone's own way: nothing is left.
  with mock.patch.object(Forward, "first", property(lambda self: _cut(self))):
    trains, frozen = branches.split(params, ("prompt",))

    def loss(trains):
      forward = Forward(case.model, branches.merge(trains, frozen), batch)
      return text(forward).total

    gradient = jax.grad(loss)(trains)
  assert not any(np.any(x) for x in jax.tree.leaves(gradient))


def _cut(forward):
  return jax.lax.stop_gradient(forward.states[:, 0])


def test_noise_is_another_in_each_step(case, batch, informed):
  term, params = informed
  first, second = (
    run(term, case.model, params, batch, jax.random.key(seed))[0] for seed in (0, 1)
  )
  assert first != second

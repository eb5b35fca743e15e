"""Methods of `gin/methods/` on a decoder: those that name an encoder act on its stack.

A few by default, one of each way to act; PROMPT_TUNING_EVERY_METHOD=1 takes all.
"""

import os

import jax
import jax.numpy as jnp
import method_tools as tools
import numpy as np
import pytest

from prompt_tuning.core import trainable as branches
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.decoding import score
from prompt_tuning.engine import loop, product, step
from prompt_tuning.engine.facts import product_of

EVERY = tools.THOROUGH or bool(os.environ.get("PROMPT_TUNING_EVERY_METHOD"))
CASES = tools.METHODS if EVERY else ["p_tuning_v2", "ia3"]


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
  folder = tmp_path_factory.mktemp(request.param)
  return tools.case(request.param, folder, family="decoder")


@pytest.fixture(scope="module")
def plain(case):
  return case.logits()


def answers(case):
  return [len(row["targets"]) for row in case.rows]


def test_it_stands_on_the_only_stack(case):
  if case.model.prompt is not None:
    injection = case.model.inject(case.params, case.batch())
    assert injection.places
    assert all(place.startswith("decoder.") for place in injection.places)


def test_packed_rows_have_the_gradient_of_padded_ones(case):
  """Of declared leaves alone, and of each of them."""
  packed, batch, places = case.packed()
  assert sorted(places) == list(range(tools.B)) and packed.segments > 1

  def run(model, batch):
    return step.gradients(model, case.method.objective, 1)(*case.split, batch, None)

  found, (term,) = run(packed, batch)
  wanted, (other,) = run(case.model, case.batch())
  assert term.weight == other.weight
  tools.assert_close(term.total, other.total, 5e-5)
  gradients = branches.flatten(wanted)
  for path, gradient in branches.flatten(found).items():
    assert any(branches.within(path, name) for name in case.method.trainable), path
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0, path
    tools.assert_close(gradient, gradients[path], 2e-4)


def test_more_padding_and_no_company_are_invisible(case, plain):
  alone = case.logits(case.batch(case.rows[2:3], more=3))
  count = answers(case)[2]
  tools.assert_close(alone[0, :count], plain[2, :count], 2e-5)


def test_scanned_equals_unrolled(case, plain):
  with jax.disable_jit():
    scanned = case.scanned().logits()
  for b, count in enumerate(answers(case)):
    tools.assert_close(scanned[b, :count], plain[b, :count], 2e-5)


def test_cached_decoding_equals_teacher_forcing(case, plain):
  weights, backbone = case.params["backbone"], case.model.backbone
  reading, injection = case.model.read(case.params, case.batch())
  logits, memory, cache = backbone.prefill(weights, reading, 1, injection)
  fed_B = jnp.asarray(case.batch()["targets"][:, 0])
  behind, _ = backbone.extend(weights, fed_B, memory, cache, jnp.int32(0))
  for u, found in enumerate((logits, behind)):
    tools.assert_close(found, plain[:, u], 5e-5)


def test_choice_scores_are_those_of_each_label_alone(case, plain):
  targets_BU = np.asarray(case.batch()["targets"])[:, : max(answers(case))]
  labels_BKU = np.stack([targets_BU, np.roll(targets_BU, 1, axis=0)], axis=1)
  with jax.disable_jit():
    found = score.choice_scores(case.model, case.params, case.batch(), labels_BKU)
  shares = np.asarray(jax.nn.log_softmax(plain[:, : targets_BU.shape[1]]))
  ids = np.maximum(targets_BU, 0)[..., None]
  each_BU = np.take_along_axis(shares, ids, -1)[..., 0]
  wanted = np.where(targets_BU >= 0, each_BU, 0).sum(1)
  tools.assert_close(found[:, 0], wanted, 5e-5)
  assert np.abs(found[:, 1] - found[:, 0]).max() > 0.1


def test_saved_and_loaded_gives_the_same_logits(case, plain, tmp_path):
  trained, _ = case.split
  best = loop.Best(3, {"loss": 0.5})
  saved = product_of(case.model, case.params, trained, {"method": "m"}, best)
  saved.save(tmp_path / "prompt")
  loaded = product.load(tmp_path / "prompt")
  model = PromptedModel(case.model.backbone, loaded.module, head=loaded.head)
  params = loaded.params(tools.backbone_params("decoder"))
  tools.assert_close(model.logits(params, case.batch()), plain)

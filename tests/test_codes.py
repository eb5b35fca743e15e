"""Codes of the frozen encoder, made once: the same numbers, one pass of it less."""

import dataclasses
from types import SimpleNamespace

import jax
import method_tools as tools
import numpy as np
import pytest

from prompt_tuning.core import trainable as branches
from prompt_tuning.data.features import Layout, pad
from prompt_tuning.data.lists import Lists
from prompt_tuning.engine import codes, evaluate, fit, loop, optimizer, step
from prompt_tuning.engine import ready as readying
from prompt_tuning.engine.ready import prepare
from prompt_tuning.engine.recipe import Recipe
from prompt_tuning.objectives.cross_entropy import CrossEntropy


class Letters:
  """A vocabulary of one piece a letter."""

  pad_id, eos_id, unk_id = 0, 1, 2

  def encode(self, text):
    return tools.encode(text)

  def decode(self, ids):
    return " ".join(map(str, ids))


PAIRS = [("abcdefghijkl"[: (3, 2, 12)[i % 3]], "xyz"[: 1 + i % 2]) for i in range(9)]
# Tiny programs that run once.


@pytest.fixture(scope="module")
def case():
  return tools.case("s_idpg_phm", PROMPT_LENGTH=2)


def made(model, params, batch):
  """Codes as a step makes them."""
  return np.asarray(jax.jit(model.codes)(params, batch))


@pytest.fixture(scope="module")
def fed(case):
  """What a run on packed rows, the longest texts cut, feeds to its steps.

  (model, layout, first batch, validation examples as evaluated, words said)
  """
  recipe = Recipe(
    trainable=("prompt",),
    objective=CrossEntropy(),
    optimizer=optimizer.Optimizer(optimizer.Adafactor(), optimizer.constant(0.1)),
    plan=loop.Plan(2),
    batch_size=4,
    eval_batch_size=4,
    pack_segments=2,
    cache_codes=True,
  )
  model = dataclasses.replace(case.model, segments=2)
  task = Lists(train=PAIRS, validation=PAIRS[:5])
  layout = Layout(9, 6, case.model.lengths["encoder"], truncate=True)
  seen, words = {}, []

  def train(step, state, frozen, batches, *_, evaluate, **__):
    seen["batch"] = next(batches)
    evaluate(state)
    return state, loop.Best(2, {"loss": 0.0})

  def scores(self, params, examples, numbers):
    seen["examples"] = examples

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(readying, "initial_params", lambda *_: case.params)
    patch.setattr(loop, "run", train)
    patch.setattr(evaluate.Evaluator, "scores", scores)
    backbone = case.params["backbone"]
    ready = prepare(model, backbone, Letters(), task, layout, recipe, None)
    fit.run(ready, SimpleNamespace(say=words.append))
  return model, layout, seen["batch"], seen["examples"], words


def test_a_packed_run_gives_its_steps_the_codes_of_each_segment(case, fed):
  model, _, batch, _, words = fed
  assert batch["code"].shape == (4, 2, tools.H) and batch["segment_ids"].max() == 2
  codes = batch["code"].reshape(8, tools.H)
  real = np.array([(batch["segment_ids"] == s).any(1) for s in (1, 2)]).T.reshape(8)
  assert 4 < real.sum() < 8
  ids = {name: value for name, value in batch.items() if name != "code"}
  tools.assert_close(codes[real], made(model, case.params, ids)[real])
  assert not codes[~real].any() and codes[real].std(0).max() > 0.1
  assert words[0].startswith("Codes of 14 examples: 0.0 MB")


def test_evaluation_is_given_codes_of_the_examples_as_they_are_cut(case, fed):
  _, layout, _, examples, _ = fed
  assert len(examples) == 5 and max(len(one["inputs"]) for one in examples) > 9
  rows = [pad(layout.convert(one), layout.lengths) for one in examples]
  batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
  tools.assert_close(batch.pop("code"), made(case.model, case.params, batch))


def test_packed_rows_give_the_same_gradient(case, fed):
  model, _, batch, _, _ = fed
  trainable, frozen = case.split
  gradient = jax.jit(step.gradients(model, CrossEntropy(), 1))
  cached, (same,) = gradient(trainable, frozen, batch, None)
  uncached = {name: value for name, value in batch.items() if name != "code"}
  plain, (term,) = gradient(trainable, frozen, uncached, None)
  assert float(same.total) == pytest.approx(float(term.total), rel=1e-5)
  for name, leaf in branches.flatten(plain).items():
    # Sums over all tokens, in another order.
    tools.assert_close(branches.flatten(cached)[name], leaf, 5e-5)


def test_padded_rows_give_the_same_logits(case):
  batch = case.batch()
  logits = jax.jit(case.model.logits)
  plain = logits(case.params, batch)
  code = made(case.model, case.params, batch)
  assert code.dtype == np.float32
  np.testing.assert_allclose(np.square(code).mean(-1), 1, rtol=1e-4)
  tools.assert_close(logits(case.params, {**batch, "code": code}), plain)
  other = logits(case.params, {**batch, "code": 1 - code})
  assert np.abs(other - plain).max() > 0.1


def products(function, *args):
  return str(jax.make_jaxpr(function)(*args)).count(" dot_general[")


def test_the_step_has_one_pass_of_the_encoder_less(case):
  batch, backbone = case.batch(), case.model.backbone

  def encode(params, ids):
    return backbone.encode_rows(params, backbone.embed(params, ids), ids > 0)

  logits = [
    products(case.model.logits, case.params, features)
    for features in (batch, {**batch, "code": np.ones((tools.B, tools.H))})
  ]
  # The pass, and the mean of its states.
  passed = products(encode, case.params["backbone"], batch["inputs"])
  assert logits[0] - logits[1] == passed + 1


@pytest.mark.parametrize(
  ("name", "trainable", "streams", "words"),
  [
    ("prompt_tuning", ("prompt",), False, "one part reads the frozen encoder.* 0 do"),
    ("s_idpg_dnn_attention", ("prompt",), False, "Encoding hangs on .* CODE_POOL"),
    ("s_idpg_phm", ("prompt", "backbone/decoder"), False, "names .'backbone/decoder'"),
    ("s_idpg_phm", ("prompt",), True, "a stream"),
  ],
)
def test_codes_that_cannot_be_made_once_are_refused(name, trainable, streams, words):
  model = tools.case(name).model
  with pytest.raises(ValueError, match=f"`CACHE_CODES` is True.*{words}"):
    codes.check(model, trainable, streams)

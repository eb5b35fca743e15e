"""Many prompts in one: each row of a batch gets what its own prompt would give."""

import dataclasses

import jax
import method_tools as tools
import numpy as np
import pytest

from prompt_tuning.core import describe
from prompt_tuning.core import trainable as branches
from prompt_tuning.core.gallery import Gallery
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.core.prompt import Prompt, Together
from prompt_tuning.engine import step
from prompt_tuning.inits import uniform
from prompt_tuning.objectives.cross_entropy import CrossEntropy
from prompt_tuning.parameterisers.dense import Dense

NAMES = ("first", "second", "third")
# Slots, masked slots, keys and values, scales, layers, and a prompt of two parts.
METHODS = ["prompt_tuning", "ipt_random", "s_idpg_phm", "prefix_tuning", "ia3"]
METHODS += ["deep_prompt", "dept", "ipt_mlp_concat"]
ROWS = [{**row, "task": np.int32(i % 3)} for i, row in enumerate(tools.examples())]


@pytest.fixture(scope="module", params=METHODS)
def cases(request):
  """A gallery of three prompts of one sentence, and each of them alone."""
  one = tools.case(request.param)
  shapes = one.params["prompt"]
  own = {name: tools.random_params(shapes, salt=name) for name in NAMES}
  alone = [
    dataclasses.replace(one, params={**one.params, "prompt": own[name]}, rows=ROWS)
    for name in NAMES
  ]
  copies = (one.model.prompt.clone(_deep_clone=True) for _ in NAMES)
  module = Gallery(dict(zip(NAMES, copies, strict=True)))
  model = PromptedModel(tools.BACKBONE, module)
  params = {**one.params, "prompt": own}
  return tools.Case(one.method, model, params, ROWS), alone


def test_a_mixed_batch_is_each_prompt_alone(cases):
  case, alone = cases
  found = case.plain_logits
  each = [one.logits() for one in alone]
  for b, row in enumerate(ROWS):
    tools.assert_close(found[b], each[row["task"]][b])
  assert np.abs(each[0] - each[1]).max() > 1e-3
  if case.method.name == "prompt_tuning":
    tools.assert_close(jax.jit(case.model.logits)(case.params, case.batch()), found)


def test_packed_rows_have_prompts_of_their_own(cases):
  case, _ = cases
  model, batch, places = case.packed()
  logits = np.asarray(model.logits(case.params, batch))
  assert sorted(places) == list(range(tools.B))
  for number, (b, s) in places.items():
    mine = np.asarray(batch["decoder_segment_ids"][b] == s)
    tools.assert_close(logits[b, mine], case.plain_logits[number, : mine.sum()])


def test_branches_are_named_and_a_card_brings_them_back(cases):
  case, _ = cases
  shapes = case.model.prompt_shapes(case.params["backbone"])
  assert set(shapes) == set(NAMES)
  found = branches.flatten(shapes)
  assert {k: x.shape for k, x in found.items()} == {
    k: x.shape for k, x in branches.flatten(case.params["prompt"]).items()
  }
  module = describe.rebuild(describe.describe(case.model.prompt))
  assert isinstance(module, Gallery) and module.names == NAMES and module.tasks == 3
  again = dataclasses.replace(case, model=PromptedModel(tools.BACKBONE, module))
  np.testing.assert_array_equal(
    again.handed(case.batch()),
    case.handed(case.batch()),
  )


def free(length=2, site="encoder.input"):
  return Prompt(length, Dense(uniform.zeros()), site)


def test_an_absent_prompt_learns_nothing_and_an_unknown_number_picks_none():
  case = tools.case("prompt_tuning")
  shapes = case.params["prompt"]
  own = {name: tools.random_params(shapes, salt=name) for name in NAMES}
  copies = (case.model.prompt.clone(_deep_clone=True) for _ in NAMES)
  module = Gallery(dict(zip(NAMES, copies, strict=True)))
  rows = [{**row, "task": np.int32(2 * (i % 2))} for i, row in enumerate(ROWS)]
  case = dataclasses.replace(
    case,
    model=PromptedModel(tools.BACKBONE, module),
    params={**case.params, "prompt": own},
    rows=rows,
  )
  found, _ = step.gradients(case.model, CrossEntropy(), 1)(
    {"prompt": own}, {"backbone": case.params["backbone"]}, case.batch(), None
  )
  moved = {n: np.asarray(found["prompt"][n]["parameterise"]["prompt"]) for n in NAMES}
  assert moved["first"].any() and not moved["second"].any() and moved["third"].any()
  unknown = case.batch([{**rows[0], "task": np.int32(3)}, rows[1]])
  injection = jax.jit(case.model.inject)(case.params, unknown)
  vectors = np.asarray(injection.get("encoder.input").vectors)
  assert not vectors[0].any() and vectors[1].any()


def test_prompts_that_no_row_could_pick_among():
  with pytest.raises(ValueError, match="`Gallery.by` is 'text'"):
    Gallery({"a": free()}, by="text")
  with pytest.raises(ValueError, match="of one sentence, and reserve .*'encoder': 3"):
    Gallery({"a": free(), "b": free(3)})
  with pytest.raises(ValueError, match="`Gallery.prompts` gives a prompt the name"):
    Gallery({"by": free()})
  reader = tools.load("lpt_npg").prompt
  with pytest.raises(ValueError, match="reads the states of layers"):
    Gallery({"a": reader, "b": Together({"c": reader.clone()})})
  scales = [free(1, f"encoder.self.{name}.scale") for name in ("key", "value")]
  apart = PromptedModel(tools.BACKBONE, Gallery(dict(zip("ab", scales, strict=True))))
  with pytest.raises(ValueError, match="act at .*key.scale.*value.scale"):
    apart.prompt_shapes(tools.backbone_params())

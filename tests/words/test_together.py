"""Several prompts as one: the names of their branches, and words that they share."""

import json

import numpy as np
import pytest
from word_tools import CONTEXT, SPEC, C, Q, R, run, static

from prompt_tuning.conditions.token_lookup import TokenLookup
from prompt_tuning.core import describe
from prompt_tuning.core import trainable as branches
from prompt_tuning.core.places import At
from prompt_tuning.core.prompt import Prompt, Together, spread
from prompt_tuning.inits import uniform
from prompt_tuning.parameterisers.dense import Dense
from prompt_tuning.parameterisers.mlp import Projection
from prompt_tuning.parameterisers.rows import Rows


def again(module):
  """The module after a round trip through a card."""
  data = json.loads(json.dumps(describe.describe(module)))
  found = describe.rebuild(data)
  assert describe.describe(found) == data
  return found


def vectors(module, params=None):
  found, params = run(module, CONTEXT, SPEC, params=params)
  return np.asarray(found.get("encoder.input").vectors), params


def test_names_are_those_of_the_branches_and_order_is_that_of_the_mapping():
  # In no order of the alphabet, so that a sorted mapping shows.
  both = Together({"task": static(2), "instance": static(3)})
  placed, params = vectors(both)
  assert list(branches.flatten(params)) == [
    "instance/parameterise/prompt",
    "task/parameterise/prompt",
  ]
  order = [params[name]["parameterise"]["prompt"][0] for name in ("task", "instance")]
  np.testing.assert_array_equal(placed[0], np.concatenate(order))
  np.testing.assert_array_equal(vectors(again(both), params)[0], placed)


def test_a_card_of_a_sequence_is_read_as_it_was():
  dense = {"class": "prompt_tuning.parameterisers.dense:Dense"}
  part = {"class": "prompt_tuning.core.prompt:Prompt", "length": 2}
  part |= {"parameterise": dense, "site": "encoder.input"}
  part |= {"condition": None, "transforms": []}
  old = {"class": "prompt_tuning.core.prompt:Together", "prompts": [part, part]}
  tables = np.random.default_rng(0).normal(size=(2, 1, 2, C)).astype(np.float32)
  params = {
    f"prompts_{i}": {"parameterise": {"prompt": x}} for i, x in enumerate(tables)
  }
  placed, _ = vectors(describe.rebuild(old), params)
  np.testing.assert_array_equal(placed[0], tables.reshape(4, C))


def test_spread_names_its_parts_by_their_places():
  many = spread(static(1), ["encoder.input", At("decoder.input", 2.0)])
  assert many.names == ("encoder_input", "decoder_input")
  with pytest.raises(ValueError, match="names the place 'encoder.input' twice"):
    spread(static(1), ["encoder.input", At("encoder.input", 2.0)])


@pytest.mark.parametrize(
  "name", ["a/b", "", "1", 3, "prompts", "needs", "name", "scope", "apply"]
)
def test_a_name_that_no_branch_can_have(name):
  with pytest.raises(ValueError, match="`Together.prompts` gives a prompt the name"):
    Together({name: static(1)})


def test_names_that_do_not_fit_the_prompts():
  with pytest.raises(ValueError, match="holds 0 prompts"):
    Together({})
  with pytest.raises(ValueError, match="holds 1 prompts .* 2 names"):
    Together([static(1)], names=("a", "b"))
  with pytest.raises(ValueError, match="gives a prompt the name 'a'"):
    Together([static(1), static(1)], names=("a", "a"))
  with pytest.raises(ValueError, match="Leave `names` out"):
    Together({"a": static(1)}, names=("a",))


def sharing(one, other):
  """Two prompts of which each has a condition that may be the other's."""
  parts = {"rows": Prompt(Q, Rows(), "encoder.input", one)}
  parts["mean"] = Prompt(2, Projection(0.0), "encoder.input", other)
  return Together(parts)


def test_a_word_of_two_prompts_is_one_after_a_round_trip():
  lookup, other = (TokenLookup(Q, uniform.normal(1.0)) for _ in range(2))
  shared = sharing(lookup, lookup)
  placed, params = vectors(shared)
  assert [p for p in branches.flatten(params) if "table" in p] == [
    "rows/condition/table"
  ]
  assert describe.describe(shared)["prompts"][1]["condition"] == {
    "same": "prompts/0/condition"
  }
  back = again(shared)
  assert back.prompts[0].condition is back.prompts[1].condition
  found, _ = vectors(back, params)
  assert found.shape == (R, Q + 2, C)
  np.testing.assert_array_equal(found, placed)
  apart = again(sharing(lookup, other))
  assert apart.prompts[0].condition is not apart.prompts[1].condition
  own = {**params, "mean": {**params["mean"], "condition": params["rows"]["condition"]}}
  np.testing.assert_array_equal(vectors(apart, own)[0], placed)


def card(**fields):
  return {"class": "prompt_tuning.core.prompt:Together", **fields}


@pytest.mark.parametrize(
  "path", ["", "prompts/0", "prompts/1", "prompts/0/parameterise/x", 3, None, ["a"]]
)
def test_what_is_the_same_as_nothing_is_refused(path):
  with pytest.raises(ValueError, match=r"card\.json says .* the same as"):
    describe.rebuild(card(prompts=[{"same": path}]))


def test_modules_that_grow_by_repetition_are_refused():
  """Fifteen levels of two equal halves are few lines, and 32,768 parts."""
  inner, path = describe.describe(Prompt(1, Dense(None), "encoder.input")), "prompts/0"
  for level in range(15):
    same = "/".join([path] * (15 - level))
    inner = card(prompts=[inner, {"same": same}])
  with pytest.raises(ValueError, match="more than 4096 parts"):
    describe.rebuild(inner)

"""Sentences about an encoder, where there is none."""

import decoder_tools as tools
import jax
import method_tools
import pytest

from prompt_tuning.core.fitted import fitted
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.core.places import At, AtLayers
from prompt_tuning.core.prompt import Prompt, Together, spread
from prompt_tuning.parameterisers.dense import Dense

SPEC = tools.loaded("gpt2")[0].spec
T5_SPEC = method_tools.BACKBONE.spec


def table(site, length=3):
  return Prompt(length, Dense(tools.INIT), site)


def places(prompt):
  return {
    name: part.at.place for name, part in zip(prompt.names, prompt.prompts, strict=True)
  }


def test_one_place_moves_with_all_that_is_said_of_it():
  site = AtLayers("encoder.layers", first=1, once=True)
  moved = fitted(table(site), SPEC)
  assert moved.at == AtLayers("decoder.layers", first=1, once=True)
  assert fitted(table(At("encoder.kv", 2.0)), SPEC).at == At("decoder.kv", 2.0)
  assert fitted(moved, SPEC) is moved
  assert moved.lengths == {"decoder": 3}


def test_an_encoder_is_left_alone():
  for prompt in (
    None,
    table("encoder.input"),
    spread(table("encoder.kv"), ["cross.kv"]),
  ):
    assert fitted(prompt, T5_SPEC) is prompt


def test_what_stands_there_already_and_what_crosses_is_left_out():
  sites = ["encoder.kv", "decoder.kv", "cross.kv", "encoder.input"]
  found = fitted(spread(table("encoder.kv"), sites), SPEC)
  wanted = {"decoder_kv": "decoder.kv", "encoder_input": "decoder.input"}
  assert places(found) == wanted
  inner = ["encoder.self.key.scale", "decoder.cross.key.scale"]
  found = fitted(spread(table(inner[0], 1), inner), SPEC)
  assert places(found) == {"encoder_self_key_scale": "decoder.self.key.scale"}


def test_two_parts_of_one_place_both_stay():
  both = Together({"one": table("encoder.input"), "two": table("encoder.input", 2)})
  found = fitted(both, SPEC)
  assert places(found) == dict.fromkeys(("one", "two"), "decoder.input")
  assert found.lengths == {"decoder": 5}


def test_what_crosses_alone_is_refused():
  with pytest.raises(ValueError, match="a stack that this backbone lacks"):
    fitted(spread(table("cross.kv"), ["cross.kv"]), SPEC)
  backbone, weights = tools.loaded("gpt2")
  model = PromptedModel(backbone, table("cross.kv"))
  with pytest.raises(ValueError, match="'cross.kv', which this backbone has not"):
    model.init_prompt(jax.random.key(0), weights)

"""Words side by side and at their places, and what they say to bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from word_tools import (
  CODE,
  CONTEXT,
  MASK,
  PLACES,
  SHAPE,
  SPEC,
  VALUES,
  C,
  Q,
  R,
  V,
  close,
  draw,
  generate,
  run,
  static,
)

from prompt_tuning.conditions.pooled import Embeddings
from prompt_tuning.conditions.token_lookup import TokenLookup
from prompt_tuning.core.context import Spec
from prompt_tuning.core.places import At
from prompt_tuning.core.prompt import Drawn, Prompt, Together
from prompt_tuning.inits import uniform, vocabulary
from prompt_tuning.parameterisers.dense import Dense
from prompt_tuning.parameterisers.mlp import Bottleneck
from prompt_tuning.parameterisers.phm import Phm
from prompt_tuning.parameterisers.rows import Rows
from prompt_tuning.transforms.add_table import AddTable


@pytest.mark.parametrize("mask", [None, MASK])
def test_added_table(mask):
  given = Drawn(CODE.values[:, None], mask if mask is None else jnp.asarray(mask))
  drawn, p = run(AddTable(uniform.zeros(), 0.05), given, None, SPEC)
  kept = VALUES if mask is None else VALUES * mask[..., None]
  close(drawn.prompt, p["table"] + 0.05 * kept[:, None])
  assert drawn.mask is None


def test_sites_place_the_vectors():
  drawn = CODE.values[:, None], CODE.mask
  found = At("encoder.input")(*drawn, SPEC)
  np.testing.assert_array_equal(found.vectors, VALUES)
  np.testing.assert_array_equal(found.mask, MASK)
  found = At("decoder.input")(*drawn, SPEC)
  np.testing.assert_array_equal(found.vectors, VALUES * MASK[..., None])
  assert found.mask is None
  for site in ("encoder.input", "decoder.input"):
    assert At(site).tables(SPEC)[:2] == (1, C)


def test_several_prompts_as_one():
  masked = Prompt(Q, Rows(), "encoder.input", TokenLookup(Q, uniform.zeros()))
  both = Together([static(2), masked, static(1, "decoder.input")])
  assert both.lengths == {"encoder": 2 + Q, "decoder": 1}
  assert both.reads_input and not both.needs and both.external_width == 0
  found, p = run(both, CONTEXT, SPEC)
  task = p["prompts_0"]["parameterise"]["prompt"][0]
  encoder, decoder = found.get("encoder.input"), found.get("decoder.input")
  np.testing.assert_array_equal(encoder.vectors[1, :2], task)
  assert encoder.vectors.shape == (R, 2 + Q, C)
  np.testing.assert_array_equal(encoder.mask[:, 2:], MASK)
  assert encoder.mask[:, :2].all() and decoder.vectors.shape == (1, 1, C)


BLANK = Spec(C, V, PLACES)
BAD = {
  "`Prompt.length`.* got 0.* `unprompted`": lambda: static(0),
  "`Prompt.condition` is None, but Rows reads": lambda: Prompt(
    4, Rows(), "encoder.input"
  ),
  "but Dense does not read a code": lambda: Prompt(
    4, Dense(uniform.zeros()), "encoder.input", Embeddings()
  ),
  "`pool` must be one of .* got 'cls'": lambda: Embeddings("cls"),
  "`Bottleneck.width` must be at least 1, got 0": lambda: generate(Bottleneck(0)),
  "order 3 must divide the code's width = 8": lambda: generate(Phm(6, 3)),
  "order 4 must divide `Phm.width` = 6": lambda: generate(Phm(6, 4)),
  r"must divide PROMPT_LENGTH \* width = 12": lambda: run(
    Phm(8, 8), CODE, (1, 4, 3), SPEC
  ),
  "order 0 must divide": lambda: generate(Phm(8, 0)),
  "`uniform.symmetric` takes a scale of at least 0, got -1": lambda: uniform.symmetric(
    -1
  ),
  "`uniform.positive` takes": lambda: uniform.positive(-1),
  "`uniform.normal` takes": lambda: uniform.normal(-1),
  "population` must be at least 1, got 0": lambda: vocabulary.sampled(0),
  "first` is 40, but the table has 40 rows": lambda: draw(
    vocabulary.sampled(first=40), 1, 2, C
  ),
  "labels` is empty": lambda: vocabulary.class_labels([], uniform.zeros()),
  "words` is empty": lambda: vocabulary.text("  ", uniform.zeros()),
  "rows have width 8, but the site asks for 5": lambda: draw(
    vocabulary.sampled(), 1, 2, 5
  ),
  "without a token table": lambda: vocabulary.sampled()(
    jax.random.key(0), (1, 2, C), BLANK
  ),
  "has no pieces": lambda: draw(
    vocabulary.class_labels([""], uniform.zeros()), 1, 2, C
  ),
  r"`Dense.prompt` must have shape \(1, 4, 8\), got \(1, 3, 8\)": lambda: run(
    Dense(None), None, SHAPE, SPEC, params={"prompt": jnp.zeros((1, 3, C))}
  ),
  r"`Dense.prompt` must have shape \(1, 4, 8\), got None": lambda: run(
    Dense(None), None, SHAPE, SPEC, params={}
  ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused(message):
  with pytest.raises(ValueError, match=message):
    BAD[message]()

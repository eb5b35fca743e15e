"""One forward pass, many terms: counts, teachers, weights of an objective's own."""

import dataclasses
from typing import ClassVar
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import method_tools as tools
import numpy as np
import pytest
from forward_tools import WORDS, run

from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.core.forward import Forward
from prompt_tuning.core.prompt import Drawn
from prompt_tuning.core.randomness import streams
from prompt_tuning.engine import config, step, terms
from prompt_tuning.objectives import objective as objectives
from prompt_tuning.objectives.choices import Choices
from prompt_tuning.objectives.cross_entropy import CrossEntropy
from prompt_tuning.objectives.distil import Distil, DistilStates
from prompt_tuning.objectives.info_bound import InfoBound
from prompt_tuning.objectives.objective import Objective, Term, Weighted


@dataclasses.dataclass(frozen=True)
class Rows(Objective):
  """Counts rows where cross-entropy counts tokens; reads no part of the backbone."""

  def count(self, batch, ids):
    return jnp.float32(len(batch["inputs"]))

  def __call__(self, forward):
    square = jnp.square(forward.injection.get("encoder.input").vectors).mean()
    # Another value in each part of the batch.
    total = square * forward.batch["inputs"].sum().astype(jnp.float32)
    return Term(
      total, self.count(forward.batch, forward.ids), {"rows": (total, total * 0 + 1)}
    )


def test_terms_with_other_counts_add_up_over_microbatches(case, batch):
  both = Weighted([CrossEntropy(), Weighted([Rows()], [0.5])], [1.0, 0.2])
  trains, frozen = case.split
  found = {}
  for parts in (1, 4):
    gradient = jax.jit(step.gradients(case.model, both, parts))
    grads, terms_ = gradient(trains, frozen, batch, None)
    share = 1 / terms_[0].weight
    scaled = jax.tree.map(lambda g, s=share: g * s, grads)
    found[parts] = scaled, objectives.mean(both, terms_)
  jax.tree.map(lambda a, b: tools.assert_close(a, b, 1e-5), found[1], found[4])
  loss, gradient, _ = run(both, case.model, case.params, batch)
  tools.assert_close(found[1][1], loss)
  jax.tree.map(lambda a, b: tools.assert_close(a, b, 1e-5), found[1][0], gradient)


def test_terms_share_one_pass(case, batch):
  many = Weighted([CrossEntropy()] * 3, [1.0, 1.0, 1.0])

  with (
    mock.patch.object(T5, "encode", autospec=True, side_effect=T5.encode) as encode,
    mock.patch.object(T5, "states", autospec=True, side_effect=T5.states) as states,
  ):
    jax.eval_shape(
      lambda: objectives.terms(many, Forward(case.model, case.params, batch))
    )
  assert (encode.call_count, states.call_count) == (1, 1)


def test_a_weight_of_zero_is_the_plain_run(taught, batch):
  model, params = taught
  plain = run(CrossEntropy(), model, params, batch)
  both = Weighted([CrossEntropy(), Distil("other")], [1.0, 0.0])
  loss, gradient, _ = run(both, model, params, batch)
  assert loss == plain[0]
  jax.tree.map(np.testing.assert_array_equal, gradient, plain[1])


# ---- what a card keeps, and what cannot be computed without a run


def test_an_objective_goes_into_a_card_and_back():
  both = Weighted(
    (CrossEntropy(0.1), Choices("hinge"), Distil("a"), InfoBound()),
    (1.0, 0.5, 2.0, 1.0),
  )
  assert terms.of({"objective": terms.said(both)}) == both
  kept = terms.answering(both)
  assert kept == Weighted((CrossEntropy(0.1), Choices("hinge")), (1.0, 0.5))
  assert terms.answering(Distil("a")) == CrossEntropy() == terms.of({})
  word = {"class": "prompt_tuning.parameterisers.dense:Dense"}
  with pytest.raises(ValueError, match="not a term of an objective"):
    terms.of({"objective": word})


@pytest.mark.parametrize(
  "make, words",
  [
    (lambda: Distil("a", "cosine"), "Distil.kind"),
    (lambda: Distil("a", temperature=0.0), "Distil.temperature"),
    (lambda: DistilStates("a", "cross"), "DistilStates.side"),
    (lambda: Choices("softmax"), "Choices.kind"),
    (lambda: Choices().bound(WORDS, None), "LABELS"),
    (lambda: Weighted([CrossEntropy()], [0.0]), "nothing is lowered"),
    (lambda: InfoBound(width=0), "InfoBound.width"),
    (lambda: InfoBound().bound(WORDS, ()), "LABELS"),
    (lambda: objectives.parts(Weighted([InfoBound()] * 2, [1, 1])), "name of its own"),
  ],
)
def test_what_does_not_fit_is_refused(make, words):
  with pytest.raises(ValueError, match=words):
    make()


def test_teachers_must_be_there_and_of_the_same_lengths(case):
  with pytest.raises(ValueError, match="TEACHERS names"):
    terms.check_teachers(Distil("source"), case.model)
  longer = tools.case("prompt_tuning", PROMPT_LENGTH=7).model.prompt
  model = dataclasses.replace(case.model, teachers={"source": longer})
  with pytest.raises(ValueError, match="the same PROMPT_LENGTH"):
    terms.check_teachers(Distil("source"), model)


@pytest.mark.parametrize("name", ["tfew", "infoprompt"])
def test_methods_bind_their_objective(name):
  config.parse(
    ["gin/train.gin", f"gin/methods/{name}.gin"],
    ["PROMPT_LENGTH = 6", "TASK = None", "MODEL_DIR = None"][name == "tfew" :],
  )
  found = config.macro("OBJECTIVE")
  kinds = [type(part.objective).__name__ for part in objectives.parts(found)]
  assert kinds[0] == "CrossEntropy" and len(kinds) == (3 if name == "tfew" else 2)


# ---- what words tell beside their prompt, and what they draw


class Noisy(nn.Module):
  """Adds noise of a stream of its own, and tells of its size."""

  noise: ClassVar[tuple[str, ...]] = ("sample",)

  @nn.compact
  def __call__(self, drawn, code, spec, train=False):
    made = drawn.prompt
    if train:
      made = made + jax.random.normal(self.make_rng("sample"), made.shape)
    self.sow("aux", "size", jnp.square(made).mean())
    return Drawn(made, drawn.mask)


def test_words_sow_numbers_and_draw_their_own_noise(case, batch):
  prompt = case.model.prompt.clone(transforms=(Noisy(),))
  assert streams(prompt) == {"sample"} and not streams(case.model.prompt)
  model = dataclasses.replace(case.model, prompt=prompt)
  found = {}
  for seed in (None, 0, 0, 1):
    key = None if seed is None else jax.random.key(seed)
    forward = Forward(model, case.params, batch, key)
    vectors = forward.injection.get("encoder.input").vectors
    (size,) = forward.aux["transforms_0/size"]
    tools.assert_close(size, np.square(vectors).mean())
    tools.assert_close(found.setdefault(seed, vectors), vectors)
  plain = case.model.inject(case.params, batch).get("encoder.input").vectors
  np.testing.assert_array_equal(found[None], plain)
  assert np.abs(found[0] - found[1]).max() > 0.1

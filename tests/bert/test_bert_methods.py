"""Every method that acts on an encoder, on a tiny BERT under a pooled head.

What is left of a sentence spread over two stacks counts (LoRA, P-Tuning v2); methods of
a decoder alone do not.
"""

import dataclasses
import functools
import os
import re

import jax
import jax.numpy as jnp
import method_tools as tools
import numpy as np
import pytest

from prompt_tuning.backbones.bert.backbone import Bert
from prompt_tuning.backbones.bert.config import BertConfig
from prompt_tuning.backbones.bert.stacking import stack_layers
from prompt_tuning.core import trainable as branches
from prompt_tuning.core.forward import Forward, examples
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.data.batches import stack
from prompt_tuning.data.features import Layout, pad
from prompt_tuning.data.packing import pack
from prompt_tuning.engine import config, loop, product, step
from prompt_tuning.engine.facts import product_of
from prompt_tuning.heads.pooled import Pooled
from prompt_tuning.objectives.classes import CrossEntropy

T, S, B = tools.T, tools.S, 5
# The same table as the tests of other methods, and 3 layers.
SIZES = {"vocab_size": tools.V, "emb_dim": tools.H, "num_heads": 2, "mlp_dim": 24}
MARKS = {"first_id": 2, "last_id": 1, "mask_id": 60}
BACKBONE = Bert(BertConfig(**SIZES, **MARKS, num_layers=3, positions=64))
FEW = ["prompt_tuning", "lora", "ptec"]
EVERY = tools.THOROUGH or bool(os.environ.get("PROMPT_TUNING_EVERY_METHOD"))


@functools.cache
def weights():
  return tools.random_params(BACKBONE.shapes(), 0.4)


def parts(prompt):
  return () if prompt is None else getattr(prompt, "prompts", (prompt,))


def fits(name, folder):
  """Whether a method has a part that an encoder obeys, and none that it lacks."""
  prompt = tools.load(name, folder).prompt
  sites = [part.at.place for part in parts(prompt)]
  return not sites or any(site in BACKBONE.spec.places for site in sites)


@dataclasses.dataclass
class Case:
  """A method on the tiny encoder, with parameters drawn at random."""

  method: tools.Method
  model: PromptedModel
  params: dict

  @property
  def trainable(self):
    return self.model.trains(self.method.trainable)

  def scores(self, batch, model=None, params=None):
    return np.asarray(Forward(model or self.model, params or self.params, batch).head)


@pytest.fixture(scope="module", params=tools.METHODS if EVERY else FEW)
def case(request, tmp_path_factory):
  folder = tmp_path_factory.mktemp(request.param)
  method = tools.load(request.param, folder)
  if not fits(request.param, folder):
    pytest.skip("acts on a decoder alone")
  wide = 2 * BACKBONE.spec.places["encoder.kv"].width
  for macro in folder.glob("*.npy") if "prefix" in request.param else ():
    np.save(macro, np.random.default_rng(5).normal(size=(tools.V, wide)))
  head = method.head or Pooled(13, "mean")
  model = PromptedModel(BACKBONE, method.prompt, head=head)
  params = {"backbone": weights()}
  params["head"] = tools.random_params(model.head_shapes(), salt="head")
  if model.prompt is not None:
    shapes = model.prompt_shapes(params["backbone"])
    params["prompt"] = tools.random_params(shapes, salt="prompt")
  return Case(method, model, params)


def batch(case, more=0, chosen=range(B), place="after_first"):
  length = case.model.lengths.get("encoder", 0)
  layout = Layout(T - length - 1 + more, 1, length, place=place, form=BACKBONE.format)
  rows = [layout.convert(tools.examples()[i]) for i in chosen]
  return arrays(case, [pad(row, layout.lengths, layout.form) for row in rows])


def arrays(case, rows):
  found, prompt = stack(rows), case.model.prompt
  found["labels"] = found["labels"].argmax(-1).astype(np.int32)
  if prompt is None or not prompt.external_width:
    found.pop("external")
  if prompt is None or not prompt.tasks:
    found.pop("task")
  return {name: jnp.asarray(value) for name, value in found.items()}


def test_padding_and_company_are_invisible(case):
  plain = case.scores(batch(case))
  alone = case.scores(batch(case, more=3, chosen=[2]))
  tools.assert_close(alone[0], plain[2])
  assert np.abs(plain[0] - plain[1]).max() > 1e-2


def test_packed_equals_alone(case):
  plain, length = case.scores(batch(case)), case.model.lengths.get("encoder", 0)
  layout = Layout(T, 1, length, place="after_first", form=BACKBONE.format)
  rows = [layout.convert(row) for row in tools.examples()[:B]]
  packed = list(pack(rows, 2 * T, 0, S, form=layout.form))
  assert len(packed) < B
  given = arrays(case, packed)
  model = dataclasses.replace(case.model, segments=S)
  found = case.scores(given, model)
  seen = np.asarray(examples(given, BACKBONE.spec.ids, S))
  # First fit keeps the order.
  assert seen.sum() == B
  tools.assert_close(found[seen], plain)


def test_scanned_equals_unrolled(case):
  scanned = BACKBONE.recast(scan_layers=True)
  model = dataclasses.replace(case.model, backbone=scanned)
  stacked = stack_layers(weights(), BACKBONE.config)
  params = {**case.params, "backbone": stacked}
  with jax.disable_jit():
    found = case.scores(batch(case), model, params)
  tools.assert_close(found, case.scores(batch(case)))


def test_only_declared_leaves_have_gradients(case):
  trains, frozen = branches.split(case.params, case.trainable)
  run = jax.jit(step.gradients(case.model, CrossEntropy(), 1))
  found, (term,) = run(trains, frozen, batch(case), None)
  assert term.weight == B and np.isfinite(term.total)
  own = branches.flatten(found)
  assert set(own) == set(branches.flatten(trains))
  idle = [path for path, leaf in own.items() if not np.asarray(leaf).any()]
  # A head that reads means reads neither the pooler nor the table's other rows.
  unread = {"backbone/pooler/bias", "backbone/pooler/kernel"}
  assert set(idle) <= unread, idle


def test_saved_and_loaded_gives_the_same_scores(case, tmp_path):
  trains, _ = branches.split(case.params, case.trainable)
  best = loop.Best(3, {"loss": 0.5})
  product_of(case.model, case.params, trains, {"method": "m"}, best).save(
    tmp_path / "p"
  )
  loaded = product.load(tmp_path / "p")
  model = PromptedModel(BACKBONE, loaded.module, head=loaded.head)
  params = loaded.params(weights())
  tools.assert_close(case.scores(batch(case), model, params), case.scores(batch(case)))


def test_count_equals_the_formula_of_the_file(case):
  text = (config.gin_folder() / "methods" / f"{case.method.name}.gin").read_text()
  formula = re.search(r"^# Trains: (.+)$", text, re.MULTILINE).group(1)
  sizes = BACKBONE.config
  letters = {"H": tools.H, "V": tools.V, "F": sizes.mlp_dim, "__builtins__": {}}
  letters |= {
    "N": sizes.num_heads,
    "D": sizes.head_dim,
    "Le": sizes.num_layers,
    "Ld": 0,
  }
  letters["BACKBONE"] = branches.count(weights())
  for letter, macro in tools.letters(case.method.name).items():
    letters[letter] = case.method.numbers[macro]
  own = case.method.trainable
  assert branches.count(branches.split(case.params, own)[0]) == eval(formula, letters)


@pytest.mark.parametrize("name", ["prompt_tuning_decoder", "prefix_tuning_decoder"])
def test_a_method_of_a_decoder_is_refused(name, tmp_path):
  model = PromptedModel(BACKBONE, tools.load(name, tmp_path).prompt)
  with pytest.raises(ValueError, match="which this backbone has not"):
    model.prompt_shapes(weights())

"""Many prompts in one: each row of a batch gets what its own prompt would give."""

import dataclasses

import jax
import method_tools as tools
import numpy as np
import pytest
import serving_tools

import prompt_tuning as pt
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


# --- products in one


@pytest.fixture(scope="module")
def three(tiny_folder, tmp_path_factory):
  """Three products of one sentence, each of labels and scores of its own."""
  labels = {"film": ["good", "bad"], "food": ["good", "bad"], "city": ["near", "far"]}
  found = {}
  for i, (name, own) in enumerate(labels.items()):
    folder = tmp_path_factory.mktemp(name)
    card = {"scores": {"accuracy": float(i)}, "step": i, "method": "prompt_tuning"}
    card["reading"] = {"inputs": "review: {text}"}
    path = serving_tools.made(
      tiny_folder, folder, "prompt_tuning", labels=own, card=card, PROMPT_LENGTH=3
    )
    product = pt.load_prompt(str(path))
    table = product.trainable["prompt"]["parameterise"]["prompt"]
    product.trainable["prompt"]["parameterise"]["prompt"] = np.roll(table, i, axis=1)
    found[name] = product
  return found


def test_products_answer_together_as_each_alone(three, tiny_folder, tmp_path):
  model = pt.load_model(tiny_folder)
  texts = [f"a {word} day" for word in "fine dull long odd warm".split()]
  names = ["city", "film", "food", "film", "city"]
  pt.combine(three).save(tmp_path / "all")
  whole = pt.load_prompt(str(tmp_path / "all"))
  assert list(whole.trainable["prompt"]) and whole.module.names == tuple(three)
  assert whole.card["scores"] == {f"{n}/accuracy": i for i, n in enumerate(three)}
  labels = ["good", "far"]
  mixed = pt.classify(model, whole, texts, labels, task=names)[1]
  words = pt.predict(model, whole, texts, 4, task=names)
  for i, name in enumerate(names):
    alone = pt.classify(model, three[name], [texts[i]], labels)[1]
    np.testing.assert_allclose(mixed[i], alone[0], atol=1e-5)
    assert words[i] == pt.predict(model, three[name], [texts[i]], 4)[0]
  # Without labels: those of the one task, or of several that have the same.
  assert set(pt.classify(model, whole, texts, task="city")[0]) <= {"near", "far"}
  both = pt.classify(model, whole, texts[:2], task=["film", "food"])[0]
  assert set(both) <= {"good", "bad"}
  with pytest.raises(ValueError, match="`labels` is None, and the prompt's card"):
    pt.classify(model, whole, texts, task=names)
  with pytest.raises(ValueError, match="`task` is missing: .* 3 tasks apart"):
    pt.predict(model, whole, texts)


def test_products_that_do_not_go_together(three, tiny_folder, tmp_path):
  film = three["film"]

  def like(**card):
    return dataclasses.replace(film, card={**film.card, **card})

  for other, words in (
    (like(backbone={"fingerprint": "0" * 16}), "differ in the backbone"),
    (like(layout={"place": "end"}), "differ in the place of the prompt"),
    (like(layout={"truncate": True, "inputs": 8}), "differ in the length to which"),
    (like(reading={"inputs": "{text}"}), "differ in the template .* Give `inputs`"),
    (dataclasses.replace(film, module=None), "without a prompt"),
    (pt.combine(three), "tells 3 tasks apart itself"),
    (None, "is NoneType without a prompt"),
  ):
    with pytest.raises(ValueError, match=words):
      pt.combine({"film": film, "other": other})
  plain = pt.combine({"a": film, "b": like(reading=None)}, inputs="{text}")
  assert plain.card["reading"] == {"inputs": "{text}"}
  longer = tools.load("prompt_tuning", PROMPT_LENGTH=4).prompt
  with pytest.raises(ValueError, match="of one sentence, and reserve"):
    pt.combine({"a": film, "b": dataclasses.replace(film, module=longer)})
  for nothing in ({}, []):
    with pytest.raises(ValueError, match="`products` is .* give a mapping"):
      pt.combine(nothing)

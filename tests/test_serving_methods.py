"""Every method, prompt length and kind of label is exported and answers the same.

A few of them; PROMPT_TUNING_THOROUGH=1 runs them all, and SavedModels of them.
"""

import functools
import os

import jax
import method_tools
import numpy as np
import pytest
import serving_tools as tools

import prompt_tuning as pt
from prompt_tuning import answer, export
from prompt_tuning.backbones.common import fused
from prompt_tuning.data.features import Layout
from prompt_tuning.engine import conventions, evaluate
from prompt_tuning.interop import serving
from prompt_tuning.interop.load import load
from prompt_tuning.interop.serving_settings import Settings
from prompt_tuning.outputs.choice import Choice
from prompt_tuning.outputs.text import Beam, Greedy

# Labels of one piece, and of eleven.
LABELS = {
  "short": ["good", "bad"],
  "long": ["the film was long and it was not good at all", "dull"],
}
LENGTHS = 1, 3, 20
STEPS = 3
LIMIT = 10 * tools.TOLERANCE
# The third row is longer than the others' multiple of 16.
TEXTS = ["a fine film", "", "it was a lovely evening " * 5]
THOROUGH = bool(os.environ.get("PROMPT_TUNING_THOROUGH"))
# Of these, no number of reserved positions is asked for.
WITHOUT = "full_fine_tuning", "unprompted"
GRID = [
  (method, P, kind)
  for method in method_tools.METHODS
  if method not in method_tools.HEADED
  for P in (LENGTHS[:1] if method in WITHOUT else LENGTHS)
  for kind in LABELS
]
# But for the last, the shorter way of attention depends on the input's length.
FEW = [
  ("prompt_tuning", 3, "short"),
  ("prefix_tuning", 1, "short"),
  ("lpt_mppg", 3, "short"),
  ("s_idpg_phm_external", 1, "short"),
  ("task_prompts_add", 3, "short"),
  ("full_fine_tuning", 1, "long"),
]


def exported(tiny_folder, folder, method, length, kind, to):
  """The folder that was written, and what the library answers to TEXTS.

  Returns:
    (folder, what texts bring besides, labels' scores [B K], texts).
  """
  table = str(folder / "table.npy")
  np.save(table, np.random.default_rng(5).normal(size=(8192, 16)))
  numbers = {"PROMPT_LENGTH": length, "CODE_WIDTH": 12, "PRETRAINED_TABLE": table}
  # No table of one position has a higher rank.
  numbers["RANK"] = 1
  labels = LABELS[kind]
  prompt = tools.made(tiny_folder, folder, method, labels=labels, **numbers)
  # Without --labels: those of the card.
  flags = f"--steps={STEPS}", "--platforms=cpu"
  out = tools.write(to, prompt, folder / "out", *flags)
  held, model = pt.load_prompt(prompt), pt.load_model(tiny_folder)
  brought = {}
  if held.module is not None and held.module.external_width:
    draw = np.random.default_rng(0).normal(
      size=(len(TEXTS), held.module.external_width)
    )
    brought["external"] = draw.astype(np.float32)
  if held.module is not None and held.module.tasks:
    brought["task"] = np.array([2, 0, 1], np.int32)
  scores_BK = pt.classify(model, held, TEXTS, labels, **brought)[1]
  return out, brought, scores_BK, pt.predict(model, held, TEXTS, STEPS, **brought)


@pytest.fixture(autouse=True)
def forget():
  """What one case compiled, no other one uses."""
  yield
  jax.clear_caches()


@pytest.mark.parametrize("case", GRID if THOROUGH else FEW, ids=str)
def test_an_artifact_of_every_method_answers_the_same(case, tiny_folder, tmp_path):
  out, brought, wanted_BK, texts = exported(tiny_folder, tmp_path, *case, "stablehlo")
  served = serving.load(out)
  assert served.card["labels"] == LABELS[case[-1]]
  scores_BK = served.classify(TEXTS, **brought)[1]
  np.testing.assert_allclose(scores_BK, wanted_BK, rtol=0, atol=LIMIT)
  assert np.ptp(scores_BK, axis=0).min() > 10 * LIMIT, "texts make a difference"
  assert served.predict(TEXTS, **brought) == texts


@pytest.mark.skipif(not THOROUGH, reason="set PROMPT_TUNING_THOROUGH=1 to run it")
@pytest.mark.parametrize("case", GRID if THOROUGH else GRID[:1], ids=str)
def test_a_saved_model_of_every_method_answers_the_same(case, tiny_folder, tmp_path):
  tf = pytest.importorskip("tensorflow")
  pytest.importorskip("tensorflow_text")
  out, brought, wanted_BK, texts = exported(tiny_folder, tmp_path, *case, "savedmodel")
  signatures = tf.saved_model.load(str(out)).signatures
  given = {"text": tf.constant(TEXTS)}
  given |= {name: tf.constant(value) for name, value in brought.items()}
  scores_BK = signatures["classify"](**given)["scores"]
  np.testing.assert_allclose(scores_BK, wanted_BK, rtol=0, atol=LIMIT)
  found = signatures["predict"](**given)["prediction"].numpy()
  assert [one.decode() for one in found] == texts


@pytest.mark.parametrize("kind", [*fused.RUNS_ON, "xla"])
def test_a_length_that_is_a_symbol_goes_through_no_kernel(kind):
  assert not fused.chosen(kind, jax.export.symbolic_shape("t")[0])


def template(folder, tiny_folder, columns=False):
  """A prompt that was trained on cut texts through a template."""
  words = "{one}, or {two words}" if columns else "review: {text} <prompt> {{so}}"
  card = {
    "reading": {"inputs": words},
    "output": {"kind": "choice", "normalize_by_length": True, "chunk": 0},
    "layout": {"place": "end" if columns else "mark", "inputs": 9, "truncate": True},
  }
  labels = ["good", "a fine film"]
  return tools.made(
    tiny_folder, folder, "prompt_tuning", labels=labels, card=card, PROMPT_LENGTH=3
  ), labels


LONG = "it was a lovely evening with good food and better talk than one had hoped for"


def as_trained(tiny_folder, prompt, labels, texts):
  """Scores [B K] of whole inputs, cut as the layout of the training cuts them."""
  ready = answer.session(load(tiny_folder), pt.load_prompt(prompt))
  layout = Layout(9, 1, 3, 0, ready.prompt.layout["place"], truncate=True)
  examples = answer.examples(ready.loaded.vocabulary, texts)
  assert max(len(example["inputs"]) for example in examples) > 9
  vocabulary, output = ready.loaded.vocabulary, Choice(normalize_by_length=True)
  run = evaluate.predictor(ready.model, vocabulary, labels, output)
  run = functools.partial(run, ready.params)
  found = evaluate.in_order(run, examples, layout, len(texts))
  return [[record["scores"][label] for label in labels] for record in found]


def test_inputs_are_read_as_in_training(tiny_folder, tmp_path):
  prompt, labels = template(tmp_path, tiny_folder)
  served = serving.load(tools.write("stablehlo", prompt, tmp_path / "out"))
  assert served.card["reads"] == {
    "ids": 8192,
    "marks": {"pad": 0, "end": 1, "closed": True},
    "template": [
      ["text", "review: "],
      ["column", "text"],
      ["text", " <prompt> "],
      ["text", "{"],
      ["text", "so"],
      ["text", "}"],
    ],
    "inputs": 9,
    "truncate": True,
  }
  assert served.card["normalize_by_length"] is True
  whole = [f"review: {text} <prompt> {{so}}" for text in ("dull", LONG)]
  wanted_BK = as_trained(tiny_folder, prompt, labels, whole)
  for texts in (["dull", LONG], [{"text": "dull"}, {"text": LONG, "more": 3}]):
    found_BK = served.classify(texts)[1]
    np.testing.assert_allclose(found_BK, wanted_BK, rtol=0, atol=LIMIT)
  for texts, words in (
    (["a <prompt> film"], r"`texts\[0\]` has the column 'text' .*a text without"),
    ([{"words": "x"}], "the column 'text' None"),
    ([3], r"must be {column: text} of \['text'\], got 3"),
    ("a film", "must be a list of texts"),
  ):
    with pytest.raises(ValueError, match=words):
      served.classify(texts)
  with pytest.raises(ValueError, match="`inputs` must be ids from 0 to 8191, got 3 to"):
    served.run("choose", inputs=np.array([[3, 8192]]), mark=np.zeros(1, np.int32))
  with pytest.raises(ValueError, match="got -1 to 3"):
    served.run("choose", inputs=np.array([[3, -1]]), mark=np.zeros(1, np.int32))


@pytest.mark.parametrize("columns", [False, True] if THOROUGH else [True])
def test_a_saved_model_reads_as_in_training(tiny_folder, tmp_path, columns):
  tf = pytest.importorskip("tensorflow")
  pytest.importorskip("tensorflow_text")
  prompt, labels = template(tmp_path, tiny_folder, columns)
  flags = "--platforms=cpu", "--steps=2"
  out = tools.write("savedmodel", prompt, tmp_path / "out", *flags)
  run = tf.saved_model.load(str(out)).signatures["classify"]
  if columns:
    whole = ["dull, or not", f"{LONG}, or not"]
    given = {"one": ["dull", LONG], "two_words": ["not", "not"]}
  else:
    whole = [f"review: {text} <prompt> {{so}}" for text in ("dull", LONG)]
    given = {"text": ["dull", LONG]}
  given = {name: tf.constant(texts) for name, texts in given.items()}
  wanted_BK = as_trained(tiny_folder, prompt, labels, whole)
  np.testing.assert_allclose(run(**given)["scores"], wanted_BK, rtol=0, atol=LIMIT)
  first = next(iter(given))
  with pytest.raises(tf.errors.InvalidArgumentError, match="only the prompt"):
    run(**{**given, first: tf.constant(["a <prompt> b", "c"])})


@pytest.mark.parametrize(
  ("card", "words"),
  [
    ({"reading": []}, "`reading` is .*must be an object"),
    ({"reading": {"inputs": "{}"}}, "names no column"),
    ({"output": "choice"}, "`output` is 'choice'; it must be an object"),
    (
      {"output": {"kind": "greedy", "steps": 0.5}},
      "`output.steps` is 0.5; it must be a whole",
    ),
    (
      {"output": {"kind": "choice", "normalize_by_length": 1}},
      "normalize_by_length` is 1; it must be true or false",
    ),
    ({"layout": {"truncate": True, "inputs": "x"}}, "layout.inputs is 'x'"),
    ({"task": {"labels": "good"}}, "task.labels is 'good'; it must be a list of texts"),
  ],
)
def test_prompts_whose_card_is_damaged(tiny_folder, tmp_path, card, words):
  prompt = tools.made(tiny_folder, tmp_path, "prompt_tuning", card=card)
  with pytest.raises(ValueError, match=words):
    export.export("stablehlo", str(tmp_path / "out"), str(prompt))
  assert not (tmp_path / "out").exists()


def test_settings_that_make_no_sense():
  for given, words in (
    ({"steps": 2.5}, "`steps` must be a whole number, got 2.5"),
    ({"beams": True}, "`beams` must be a whole number, got True"),
    ({"alpha": "x"}, "`alpha` must be a number"),
    ({"labels": "good"}, "`labels` must be a list of texts, got 'good'"),
    ({"labels": ["a", 3]}, "`labels` must be a list of texts"),
    ({"platforms": []}, "`platforms` must be some of"),
  ):
    with pytest.raises(ValueError, match=words):
      Settings(**given)
  trained = {"output": {"kind": "beam_search", "steps": 5, "beams": 3, "alpha": 0.1}}
  assert Settings(steps=4).filled(conventions.of(trained)).output == Beam(4, 3, 0.1)
  assert Settings().filled(conventions.of({})).output == Greedy(32)

"""Every method, prompt length and kind of label is exported and answers the same.

A few of them; PROMPT_TUNING_THOROUGH=1 runs them all, and SavedModels of them.
"""

import os

import jax
import method_tools
import numpy as np
import pytest
import serving_tools as tools

import prompt_tuning as pt
from prompt_tuning import answer
from prompt_tuning.backbones.t5 import fused
from prompt_tuning.interop import serving
from prompt_tuning.interop.load import load
from prompt_tuning.outputs.choice import Choice
from prompt_tuning.outputs.text import Greedy

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
  for P in (LENGTHS[:1] if method in WITHOUT else LENGTHS)
  for kind in LABELS
]
# But for the last, the shorter way of attention depends on the input's length.
FEW = [
  ("prompt_tuning", 3, "short"),
  ("prefix_tuning", 1, "short"),
  ("full_fine_tuning", 1, "long"),
]
SAVED = [("prompt_tuning_decoder", 1, "short")]


def exported(tiny_folder, folder, method, length, kind, to):
  """The folder that was written, and what the library answers to TEXTS.

  Returns:
    (folder, vectors that the prompt reads or None, labels' scores [B K], texts).
  """
  table = str(folder / "table.npy")
  np.save(table, np.random.default_rng(5).normal(size=(8192, 16)))
  numbers = {"PROMPT_LENGTH": length, "CODE_WIDTH": 12, "PRETRAINED_TABLE": table}
  labels = LABELS[kind]
  prompt = tools.made(tiny_folder, folder, method, labels=labels, **numbers)
  # Without --labels: those of the card.
  flags = f"--steps={STEPS}", "--platforms=cpu"
  out = tools.write(to, prompt, folder / "out", *flags)
  held = pt.load_prompt(prompt)
  width = 0 if held.module is None else held.module.external_width
  if not width:
    model = pt.load_model(tiny_folder)
    scores_BK = pt.classify(model, held, TEXTS, labels)[1]
    return out, None, scores_BK, pt.predict(model, held, TEXTS, STEPS)
  vectors = np.random.default_rng(0).normal(size=(len(TEXTS), width))
  vectors = vectors.astype(np.float32)
  ready = answer.session(load(tiny_folder), held)
  chosen = tools.records(ready, TEXTS, labels, Choice(), vectors)
  scores_BK = [[record["scores"][label] for label in labels] for record in chosen]
  written = tools.records(ready, TEXTS, None, Greedy(STEPS), vectors)
  return out, vectors, np.array(scores_BK), [one["prediction"] for one in written]


@pytest.fixture(autouse=True)
def forget():
  """What one case compiled, no other one uses."""
  yield
  jax.clear_caches()


@pytest.mark.parametrize("case", GRID if THOROUGH else FEW, ids=str)
def test_an_artifact_of_every_method_answers_the_same(case, tiny_folder, tmp_path):
  out, external, wanted_BK, texts = exported(tiny_folder, tmp_path, *case, "stablehlo")
  served = serving.load(out)
  assert served.card["labels"] == LABELS[case[-1]]
  scores_BK = served.classify(TEXTS, external)[1]
  np.testing.assert_allclose(scores_BK, wanted_BK, rtol=0, atol=LIMIT)
  assert np.ptp(scores_BK, axis=0).min() > 10 * LIMIT, "texts make a difference"
  assert served.predict(TEXTS, external) == texts


@pytest.mark.parametrize("case", GRID if THOROUGH else SAVED, ids=str)
def test_a_saved_model_of_every_method_answers_the_same(case, tiny_folder, tmp_path):
  tf = pytest.importorskip("tensorflow")
  pytest.importorskip("tensorflow_text")
  out, external, wanted_BK, texts = exported(tiny_folder, tmp_path, *case, "savedmodel")
  signatures = tf.saved_model.load(str(out)).signatures
  given = {"text": tf.constant(TEXTS)}
  if external is not None:
    given["external"] = tf.constant(external)
  scores_BK = signatures["classify"](**given)["scores"]
  np.testing.assert_allclose(scores_BK, wanted_BK, rtol=0, atol=LIMIT)
  found = signatures["predict"](**given)["prediction"].numpy()
  assert [one.decode() for one in found] == texts


@pytest.mark.parametrize("kind", [*fused.RUNS_ON, "xla"])
def test_a_length_that_is_a_symbol_goes_through_no_kernel(kind):
  assert not fused.chosen(kind, jax.export.symbolic_shape("t")[0])

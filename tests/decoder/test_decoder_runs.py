"""A decoder is tuned, saved, asked and exported as a T5 is."""

import json
import os

import decoder_runs
import numpy as np
import process_tools
import pytest

import prompt_tuning as pt
from prompt_tuning import eval as eval_verb
from prompt_tuning import export, infer, train
from prompt_tuning.engine import config
from prompt_tuning.interop import serving
from prompt_tuning.tuning import Quiet

LABELS = ["negative", "positive"]
# Compiling takes most of the time: one way to tune is run by default.
METHODS = [
  ("prompt_tuning", {"pack_segments": 3}),
  ("prefix_tuning", {"buckets": 2}),
  ("s_idpg_dnn", {}),
]
METHODS = METHODS if os.environ.get("PROMPT_TUNING_THOROUGH") else METHODS[:1]
TEXTS = ["a good film", "a dull one", "", "a lovely film, number 1234567"]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
  return decoder_runs.write(tmp_path_factory.mktemp("decoder") / "backbone")


def tuned(model, method="prompt_tuning", **more):
  words = {"positive": "good fine lovely".split(), "negative": "bad dull".split()}
  rows = [(f"a {w} film {i}", one) for one in words for w in words[one] for i in "123"]
  given = {"steps": 20, "prompt_length": 4, "batch_size": 8, "optimizer": "adamw"}
  given |= {"labels": LABELS, "learning_rate": 0.05, "recorder": Quiet()}
  return pt.tune(model, rows, method, rows, **{**given, **more}), given["recorder"]


@pytest.mark.parametrize(("method", "more"), METHODS)
def test_it_tunes_saves_and_answers(backbone, tmp_path, method, more):
  model = pt.load_model(str(backbone))
  prompt, told = tuned(model, method, eval_period=10, **more)
  lost = [line["loss"] for line in told.lines if line["split"] == "validation"]
  assert lost[-1] < lost[0]
  assert prompt.card["backbone"]["family"] == "decoder"
  prompt.save(tmp_path / "prompt")
  again = pt.load_prompt(str(tmp_path / "prompt"))
  found, scores = pt.classify(model, prompt, TEXTS)
  others, loaded = pt.classify(model, again, TEXTS)
  assert found == others
  np.testing.assert_array_equal(scores, loaded)
  # The prompt and the text are read once for both labels; alone, once for each.
  alone = pt.score(model, again, [(text, "positive") for text in TEXTS])
  np.testing.assert_allclose(scores[:, 1], alone, atol=1e-3)
  assert np.abs(scores - pt.classify(model, None, TEXTS, LABELS)[1]).max() > 0.1
  words = pt.predict(model, again, TEXTS, steps=4)
  assert len(words) == len(TEXTS)


@pytest.mark.parametrize("switch", [{"weights_dtype": "int8"}, {"dtype": "bfloat16"}])
def test_narrow_numbers_answer_nearly_the_same(backbone, switch):
  wide, narrow = pt.load_model(str(backbone)), pt.load_model(str(backbone), **switch)
  pairs = [(text, label) for text in TEXTS for label in LABELS]
  one, other = pt.score(wide, None, pairs), pt.score(narrow, None, pairs)
  np.testing.assert_allclose(one, other, rtol=0.05)
  assert (one != other).any()


def test_the_verbs(backbone, tmp_path):
  process_tools.write_task(tmp_path, str(backbone))
  flags = [f"--gin_file={tmp_path}/recipe.gin", f"--gin.MODEL_DIR='{tmp_path}/run'"]
  few = "TRAIN_STEPS=4", "EVAL_PERIOD=2", "SAVE_PERIOD=0"
  flags += [f"--gin.{one}" for one in few]
  config.run_verb(train.train, [*flags, "--gin_file=gin/outputs/choice.gin"])
  card = json.loads((tmp_path / "run/prompt/card.json").read_text())
  assert card["backbone"]["family"] == "decoder"
  assert {"loss", "accuracy"} <= set(card["scores"])

  asked = [f"--gin.PROMPT_DIR='{tmp_path}/run/prompt'"]
  flags = ["--gin_file=gin/eval.gin", f"--gin.EVAL_DIR='{tmp_path}/eval'", *asked]
  flags += ["--gin_file=gin/tasks/files.gin", "--gin.INPUTS='review: {text}'"]
  flags += [f"--gin.LABELS={LABELS}", f"--gin.DATA_DIR='{tmp_path}'"]
  flags += ["--gin.TRAIN_FILE='train.tsv'", "--gin.VALIDATION_FILE='validation.tsv'"]
  config.run_verb(eval_verb.evaluate_prompt, flags)
  assert list((tmp_path / "eval").iterdir())

  (tmp_path / "in.txt").write_text("\n".join(text for text in TEXTS if text) + "\n")
  flags = ["--gin_file=gin/infer.gin", *asked, f"--gin.INPUT_FILE='{tmp_path}/in.txt'"]
  config.run_verb(infer.infer, [*flags, f"--gin.OUTPUT_FILE='{tmp_path}/out.jsonl'"])
  lines = (tmp_path / "out.jsonl").read_text().splitlines()
  assert len(lines) == 3
  assert {json.loads(line)["prediction"] for line in lines} <= set(LABELS)


def test_exported_programs_answer_the_same(backbone, tmp_path):
  model = pt.load_model(str(backbone))
  prompt, _ = tuned(model, steps=3)
  prompt.save(tmp_path / "prompt")
  flags = "--to=stablehlo", f"--prompt={tmp_path}/prompt", "--steps=3"
  export.main([*flags, f"--output={tmp_path}/served", "--platforms=cpu"])
  served = serving.load(tmp_path / "served")
  words = pt.predict(model, prompt, TEXTS, steps=3)
  assert served.predict(TEXTS) == words
  (found, scores), wanted = served.classify(TEXTS), pt.classify(model, prompt, TEXTS)
  assert found == wanted[0]
  np.testing.assert_allclose(scores, wanted[1], atol=1e-3)

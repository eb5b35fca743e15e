"""Runs with a head, from gin and from Python: train, eval, infer, predict, serve."""

import json

import numpy as np
import process_tools
import pytest

import prompt_tuning as pt
from prompt_tuning import eval as eval_verb
from prompt_tuning import export, infer, precompile, train
from prompt_tuning.engine import config, product, sharding
from prompt_tuning.interop import serving

RECIPE = """include "gin/train.gin"
include "gin/tasks/files.gin"
include "gin/methods/ptec.gin"
{more}INPUTS = "review: {{text}}"
LABELS = ("negative", "positive")
METRICS = {metrics}
TASK_FEATURE_LENGTHS = {{"inputs": 16, "targets": 4}}
PROMPT_LENGTH = 3
BATCH_SIZE = 8
EVAL_BATCH_SIZE = 8
TRAIN_STEPS = 8
EVAL_PERIOD = 4
BEST_METRIC = "loss"
TENSORBOARD = False
"""
LABEL = 'include "gin/objectives/label.gin"\ninclude "gin/outputs/label.gin"\n'
KINDS = {
  "labels": RECIPE.format(more="", metrics='("accuracy", "f1_labels")'),
  "label": RECIPE.format(more=LABEL, metrics='("accuracy",)')
  + "HEAD_POOL = 'first'\nHEAD_FORM = 'dense_tanh'\nPACK_SEGMENTS = 2\n",
}
TEXTS = ["a fine film", "a dull and rather long evening"]


@pytest.fixture(scope="module", params=KINDS)
def run(request, tmp_path_factory, tiny_folder, cache):
  """(kind, MODEL_DIR, flags of the task) of a finished run."""
  folder = tmp_path_factory.mktemp(request.param)
  process_tools.write_task(folder, tiny_folder, KINDS[request.param], 24)
  flags = [f"--gin_file={folder}/recipe.gin", f"--gin.MODEL_DIR='{folder}/run'"]
  config.run_verb(train.train, flags)
  lines = (folder / "recipe.gin").read_text().splitlines()
  names = "INPUTS", "LABELS", "METRICS", "DATA_DIR", "TRAIN_FILE", "VALIDATION_FILE"
  kept = [line for line in lines if line.startswith(names)]
  kept += ["LABEL_SEPARATOR = '|'"] if request.param == "labels" else []
  head = 'include "gin/eval.gin"\ninclude "gin/tasks/files.gin"\n'
  (folder / "eval.gin").write_text("# The task.\n" + head + "\n".join(kept) + "\n")
  return request.param, folder


@pytest.fixture(scope="module")
def answered(run):
  """What `infer` writes of `TEXTS`."""
  kind, folder = run
  (folder / "in.txt").write_text("\n".join(TEXTS) + "\n")
  infer.infer(f"{folder}/in.txt", f"{folder}/out.jsonl", f"{folder}/run/prompt")
  return [json.loads(line) for line in open(folder / "out.jsonl")]


def test_prompt_and_head_are_the_product(run):
  kind, folder = run
  made = product.load(folder / "run")
  numbers = 2 * 17 + (16 * 17 if kind == "label" else 0)
  assert made.parameters == 3 * 16 + numbers
  assert set(made.trainable) == {"prompt", "head"}
  assert made.head.classes == 2
  assert made.card["output"]["kind"] == kind
  assert made.card["scores"].keys() >= {"loss", "accuracy"}


def test_evaluation_repeats_the_loss_and_the_scores_of_training(run):
  kind, folder = run
  flags = [f"--gin_file={folder}/eval.gin", f"--gin.EVAL_DIR='{folder}/eval'"]
  flags.append(f"--gin.PROMPT_DIR='{folder}/run/prompt'")
  found = config.run_verb(eval_verb.evaluate_prompt, flags)
  found = json.loads((folder / "eval" / "metrics-validation.json").read_text())
  stated = product.load(folder / "run").card["scores"]
  assert set(found) == set(stated)
  for name, value in stated.items():
    assert found[name] == pytest.approx(value, rel=1e-4), name
  lines = (folder / "eval" / "predictions-validation.jsonl").read_text().splitlines()
  known = {"negative", "positive", "negative|positive", "none"}
  assert {json.loads(line)["prediction"] for line in lines} <= known


def test_answers_are_the_same_from_python_and_where_it_is_served(
  run, answered, tiny_folder
):
  kind, folder = run
  model = pt.load_model(tiny_folder)
  prompt = pt.load_prompt(f"{folder}/run/prompt")
  wanted = [one["prediction"] for one in answered]
  scores = [[one["scores"][k] for k in ("negative", "positive")] for one in answered]
  assert pt.predict(model, prompt, TEXTS) == wanted
  texts, found = pt.classify(model, prompt, TEXTS)
  assert texts == wanted
  np.testing.assert_allclose(found, scores, rtol=1e-5)
  export.main(
    ["--to=stablehlo", f"--prompt={folder}/run/prompt", f"--output={folder}/artifact"]
    + ["--platforms=cpu"]
  )
  served = serving.load(folder / "artifact")
  texts, found = served.classify(TEXTS)
  assert texts == served.predict(TEXTS) == wanted
  np.testing.assert_allclose(found, scores, rtol=1e-4)
  assert served.classify([])[0] == []


def test_what_a_head_does_not_know_is_refused(run, tiny_folder, tmp_path):
  kind, folder = run
  model, prompt = (
    pt.load_model(tiny_folder),
    pt.load_prompt(f"{folder}/run/prompt"),
  )
  with pytest.raises(ValueError, match="head was trained for"):
    pt.classify(model, prompt, TEXTS, ["positive", "negative"])
  with pytest.raises(ValueError, match="labels have no length"):
    pt.classify(model, prompt, TEXTS, normalize_by_length=True)
  for form in ("numpy", "peft"):
    with pytest.raises(ValueError, match="answers by a head"):
      export.export(form, str(tmp_path / "x"), f"{folder}/run/prompt")
  # Words can still be asked for: the prompt is a prompt.
  assert len(pt.predict(model, prompt, TEXTS, steps=2)) == 2


def test_tune_trains_a_head_by_the_kind_of_answer(tiny_folder, cache):
  model = pt.load_model(tiny_folder)
  pairs = [(f"text {i}", "a|b" if i % 2 else "a") for i in range(16)]
  settings = {"steps": 4, "prompt_length": 2, "batch_size": 8}
  found = pt.tune(model, pairs, output="labels", metrics=(), **settings)
  assert found.head.classes == 2 and set(found.trainable) == {"prompt", "head"}
  assert set(pt.predict(model, found, ["x"])) <= {"a", "b", "a|b", "none"}
  numbers = [(text, str(len(text))) for text, _ in pairs]
  del settings["prompt_length"]
  found = pt.tune(model, numbers, method="linear_probe", output="number", **settings)
  assert found.head.classes == 1 and set(found.trainable) == {"head"}
  assert np.isfinite(float(pt.predict(model, found, ["x"])[0]))
  with pytest.raises(ValueError, match="no argument 'head_pool'"):
    pt.tune(model, pairs, head_pool="first", **settings)


@pytest.mark.parametrize("segments", [1, 2])
def test_a_step_with_a_head_is_lowered_from_shapes(segments):
  lines = ["LABELS = ['a', 'b', 'c']", "PROMPT_LENGTH = 2", "TRAIN_STEPS = 5"]
  lines += [f"PACK_SEGMENTS = {segments}", "BATCH_SIZE = 4", "EVAL_BATCH_SIZE = 4"]
  lines += ["MODEL_DIR = 'x'", "TASK = None"]
  files = ["gin/train.gin", "gin/backbones/mini.gin", "gin/methods/ptec.gin"]
  config.parse(files, lines, check=False)
  place = sharding.DEFAULT.over()
  job = precompile.job(place, None)
  assert job.recipe.trainable == ("prompt", "head")
  rows = (4, 3) if segments == 1 else (4, 2, 3)
  assert job.batch(4, segments)["labels"].shape == rows
  for program in ("train", "eval", "decode"):
    assert "stablehlo" in job.lower(program).as_text()

"""Whoever answers reads, cuts and scores inputs as training did."""

import json
import random

import numpy as np
import pytest

import prompt_tuning as pt
from prompt_tuning import eval as eval_verb
from prompt_tuning import infer, train
from prompt_tuning.data import tables
from prompt_tuning.data.files import Files
from prompt_tuning.engine import config, product

WORDS = "a the film soup was cold warm lovely dull evening and with good bad".split()
RECIPE = """include "gin/train.gin"
include "gin/tasks/files.gin"
include "gin/methods/prompt_tuning.gin"
include "gin/outputs/{output}.gin"
PROMPT_LENGTH = 3
BATCH_SIZE = 4
EVAL_BATCH_SIZE = 4
TRAIN_STEPS = 2
LOG_PERIOD = 1
LEARNING_RATE = 1.0
TENSORBOARD = False
"""
# Name -> (ending, output, macros). Every column but the first two is the label.
TASKS = {
  "cut_at_a_mark": (
    "tsv",
    "choice",
    {
      "INPUTS": "say {text} or <prompt> not",
      "PROMPT_PLACE": "mark",
      "TRUNCATE": True,
      "TASK_FEATURE_LENGTHS": {"inputs": 12, "targets": 2},
      "NORMALIZE_BY_LENGTH": True,
      "LABELS": ("bad", "a lovely evening"),
    },
  ),
  "two_columns": (
    "csv",
    "choice",
    {
      "INPUTS": "{{{second}}} then {text}",
      "LABEL_COLUMN": "class",
      "TARGETS": "{class}",
      "LABEL_MAP": {"bad": "dull", "a lovely evening": "a good film"},
      "TASK_FEATURE_LENGTHS": {"inputs": 64, "targets": 8},
    },
  ),
  "words": (
    "jsonl",
    "text_greedy",
    {
      "INPUTS": "review: {text}",
      "DECODE_STEPS": 3,
      "TASK_FEATURE_LENGTHS": {"inputs": 64, "targets": 8},
    },
  ),
}


def write_rows(path, count, column):
  """Rows of an id, two texts and a label, in the kind of file that the name says."""
  draw = random.Random(path.name)

  def text(most):
    return " ".join(draw.choices(WORDS, k=draw.randint(1, most)))

  names = ["n", "text", "second", column]
  made = [
    [f"row-{i}", text(30), f"{text(3)}, so", ("bad", "a lovely evening")[i % 2]]
    for i in range(count)
  ]
  if path.suffix == ".jsonl":
    lines = [json.dumps(dict(zip(names, row, strict=True))) for row in made]
  elif path.suffix == ".csv":
    quoted = [[f'"{field}"' for field in row] for row in made]
    lines = [",".join(row) for row in [names, *quoted]]
  else:
    lines = ["\t".join(row) for row in [names, *made]]
  path.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module", params=sorted(TASKS))
def trained(request, tmp_path_factory, tiny_folder, cache):
  """(folder with run/ and rows, file to answer, macros)."""
  ending, output, macros = TASKS[request.param]
  folder = tmp_path_factory.mktemp(request.param)
  asked = folder / f"validation.{ending}"
  column = macros.get("LABEL_COLUMN", "label")
  write_rows(folder / f"train.{ending}", 8, column)
  write_rows(asked, 10, column)
  lines = [f"{name} = {value!r}" for name, value in macros.items()]
  lines += [f"TRAIN_FILE = 'train.{ending}'", f"VALIDATION_FILE = '{asked.name}'"]
  lines += [f"DATA_DIR = '{folder}'", f"INITIAL_CHECKPOINT_PATH = '{tiny_folder}'"]
  text = RECIPE.format(output=output) + "\n".join(lines) + "\n"
  (folder / "recipe.gin").write_text(text)
  flags = [f"--gin_file={folder}/recipe.gin", f"--gin.MODEL_DIR='{folder}/run'"]
  config.run_verb(train.train, flags)
  return folder, asked, macros


def asked_of(folder, *flags):
  """Flags of `infer` for a trained run."""
  given = [f"PROMPT_DIR='{folder}/run/prompt'", f"OUTPUT_FILE='{folder}/out.jsonl'"]
  return ["--gin_file=gin/infer.gin", *(f"--gin.{flag}" for flag in [*given, *flags])]


def records(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_equal_training(trained, tiny_folder):
  folder, asked, macros = trained
  wanted = product.load(folder / "run").card["scores"]

  # eval: the task alone is given.
  reads = ("INPUTS", "LABEL_COLUMN", "TARGETS", "LABEL_MAP", "LABELS")
  lines = [f"{name} = {macros[name]!r}" for name in reads if name in macros]
  lines += ["TRAIN_FILE = None", f"VALIDATION_FILE = '{asked}'"]
  lines += [f"PROMPT_DIR = '{folder}/run/prompt'", f"EVAL_DIR = '{folder}/eval'"]
  includes = ['include "gin/eval.gin"', 'include "gin/tasks/files.gin"']
  (folder / "eval.gin").write_text("\n".join([*includes, *lines]) + "\n")
  found = config.run_verb(eval_verb.evaluate_prompt, [f"--gin_file={folder}/eval.gin"])
  assert found == pytest.approx(wanted, rel=1e-5) and "accuracy" in found
  evaluated = records(folder / "eval" / "predictions-validation.jsonl")
  values = {str(line.get("scores", line.get("log_probability"))) for line in evaluated}
  assert len(values) > 2, "inputs must matter"

  # infer: the file alone is given; batches of another size.
  flags = asked_of(
    folder, f"INPUT_FILE='{asked}'", "ID_COLUMN='n'", "EVAL_BATCH_SIZE=3"
  )
  assert config.run_verb(infer.infer, flags) == 10
  answers = records(folder / "out.jsonl")
  assert [line.pop("id") for line in answers] == [f"row-{i}" for i in range(10)]
  same(answers, evaluated)
  task = Files(
    validation=str(asked),
    inputs=macros["INPUTS"],
    targets=macros.get("TARGETS", "{label}"),
    label_column=macros.get("LABEL_COLUMN", "label"),
    label_map=macros.get("LABEL_MAP"),
    labels=macros.get("LABELS"),
  )
  predictions = [line["prediction"] for line in answers]
  assert task.score(predictions, "validation")["accuracy"] == wanted["accuracy"]

  # Python: rows as they are, and whole inputs.
  model, prompt = pt.load_model(tiny_folder), pt.load_prompt(str(folder / "run"))
  values = [row.values for row in tables.read(str(asked), "asked")]
  if "log_probability" in answers[0]:
    assert pt.predict(model, prompt, values) == predictions
    texts = [row["text"] for row in values]
    assert pt.predict(model, prompt, texts) == predictions
    return
  labels = list(answers[0]["scores"])
  scores = [list(line["scores"].values()) for line in answers]
  python = pt.classify(model, prompt, values, labels)
  assert python[0] == predictions
  np.testing.assert_allclose(python[1], scores, atol=1e-5)
  pairs = [(line["input"], labels[1]) for line in answers]
  whole = pt.score(model, prompt, pairs, inputs="{text}")
  length = len(model.loaded.vocabulary.encode(labels[1])) + 1
  normalised = macros.get("NORMALIZE_BY_LENGTH", False)
  wanted = python[1][:, 1] * (length if normalised else 1)
  np.testing.assert_allclose(whole, wanted, rtol=1e-5)
  plain = pt.classify(model, prompt, values[:2], labels, normalize_by_length=False)[1]
  assert (np.abs(plain - python[1][:2]).max() > 0.1) == normalised


def test_a_task_that_reads_otherwise_is_named(trained, caplog):
  folder, asked, macros = trained
  if "DECODE_STEPS" not in macros:
    return
  flags = [f"--gin_file={folder}/eval.gin", "--gin.INPUTS='{second}'"]
  config.run_verb(eval_verb.evaluate_prompt, flags)
  assert "INPUTS '{second}' (trained with 'review: {text}')" in caplog.text


def same(one, other):
  for left, right in zip(one, other, strict=True):
    assert left["input"] == right["input"]
    assert left["prediction"] == right["prediction"]
    if "scores" in left:
      assert left["scores"] == pytest.approx(right["scores"], abs=1e-5)
    else:
      assert left["log_probability"] == pytest.approx(
        right["log_probability"], abs=1e-5
      )

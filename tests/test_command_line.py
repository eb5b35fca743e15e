"""Verbs from the command line: one vocabulary for all, files of others, early ends."""

import json
import os
import pathlib
import shutil

import process_tools
import pytest

from prompt_tuning import eval as eval_verb
from prompt_tuning import export, infer, train
from prompt_tuning.engine import config

RECIPE = process_tools.RECIPE + "TRAIN_STEPS = 2\nEVAL_PERIOD = 0\n"


def verb(function, *flags, files=()):
  """Runs a verb on gin files and settings."""
  given = [*(f"--gin_file={name}" for name in files)]
  return config.run_verb(function, [*given, *(f"--gin.{flag}" for flag in flags)])


@pytest.fixture(scope="module")
def work(tmp_path_factory, tiny_folder, vocabulary_file, cache):
  """A folder with data, a backbone without a vocabulary, and a run on it."""
  folder = tmp_path_factory.mktemp("command")
  shutil.copytree(tiny_folder, folder / "backbone")
  shutil.move(folder / "backbone" / "spiece.model", folder / "words.model")
  process_tools.write_task(folder, f"{folder}/backbone", RECIPE)
  verb(
    train.train,
    f"MODEL_DIR='{folder}/run'",
    f"VOCABULARY='{folder}/words.model'",
    files=[f"{folder}/recipe.gin"],
  )
  (folder / "inputs.txt").write_text("a good film\na dull film\n")
  (folder / "task.gin").write_text(
    'include "gin/tasks/files.gin"\nINPUTS = "review: {text}"\n'
    f"LABELS = ('negative', 'positive')\nDATA_DIR = '{folder}'\n"
    "TRAIN_FILE = 'train.tsv'\nVALIDATION_FILE = 'validation.tsv'\n"
  )
  return folder


def evaluate(work, place, *flags):
  return verb(
    eval_verb.evaluate_prompt,
    f"PROMPT_DIR='{work}/run/prompt'",
    f"EVAL_DIR='{place}'",
    *flags,
    files=["gin/eval.gin", f"{work}/task.gin", "gin/outputs/choice.gin"],
  )


def answers(work, place, *flags):
  return verb(
    infer.infer,
    f"PROMPT_DIR='{work}/run/prompt'",
    f"INPUT_FILE='{work}/inputs.txt'",
    f"OUTPUT_FILE='{place}'",
    *flags,
    files=["gin/infer.gin"],
  )


def refused(capsys, function, *args):
  """The line with which a verb ends."""
  capsys.readouterr()
  with pytest.raises(SystemExit) as stop:
    function(*args)
  assert stop.value.code in (1, 2)
  (line,) = capsys.readouterr().err.splitlines()
  return line


# ---- the vocabulary


def test_who_answers_takes_the_vocabulary_that_trained(work, tmp_path, capsys):
  given = f"VOCABULARY='{work}/words.model'"
  scores = evaluate(work, tmp_path / "eval", given)
  lines = (work / "run" / "metrics.jsonl").read_text().splitlines()
  (line,) = [one for one in map(json.loads, lines) if one["split"] == "validation"]
  assert scores["loss"] == pytest.approx(line["loss"], rel=1e-5)
  assert answers(work, tmp_path / "answers.jsonl", given) == 2
  for function, name in ((evaluate, "other"), (answers, "other.jsonl")):
    line = refused(capsys, function, work, tmp_path / name)
    assert "holds no spiece.model" in line and "--gin.VOCABULARY=" in line
    assert not (tmp_path / name).exists()


def test_export_takes_a_vocabulary(work, tmp_path, capsys):
  flags = ["--to=huggingface", f"--checkpoint={work}/backbone"]
  flags += [f"--output={tmp_path}/model"]
  assert "--vocabulary=PATH" in refused(capsys, export.main, flags)
  export.main([*flags, f"--vocabulary={work}/words.model"])
  words = (tmp_path / "model" / "spiece.model").read_bytes()
  assert words == (work / "words.model").read_bytes()


def test_a_run_goes_on_with_its_vocabulary_from_another_place(work, tmp_path, capsys):
  shutil.copy(work / "words.model", tmp_path / "moved.model")
  verb(
    train.train,
    f"MODEL_DIR='{work}/run'",
    f"VOCABULARY='{tmp_path}/moved.model'",
    files=[f"{work}/recipe.gin"],
  )
  assert "finished at step 2" in capsys.readouterr().out

"""A run by command, told to end and resumed; then its answers."""

import json
import os
import pathlib
import signal

import process_tools
import pytest

from prompt_tuning import eval as eval_verb
from prompt_tuning import infer, train
from prompt_tuning.engine import config, log, product

STEPS = 60
RECIPE = """include "gin/train.gin"
include "gin/tasks/files.gin"
include "gin/methods/prompt_tuning.gin"
include "gin/outputs/choice.gin"
INPUTS = "review: {text}"
LABELS = ("negative", "positive")
TASK_FEATURE_LENGTHS = {"inputs": 16, "targets": 4}
PROMPT_LENGTH = 4
BATCH_SIZE = 8
EVAL_BATCH_SIZE = 8
TRAIN_STEPS = 60
SAVE_PERIOD = 5
EVAL_PERIOD = 20
LOG_PERIOD = 8
BEST_METRIC = "loss"
LEARNING_RATE = 0.05
SEED = 3
TENSORBOARD = False
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory, tiny_folder):
  """A folder with 24 training rows, 10 for validation, and the recipe."""
  folder = tmp_path_factory.mktemp("journey")
  process_tools.write_task(folder, tiny_folder, RECIPE, 24)
  return folder


def flags(work, name):
  return [f"--gin_file={work}/recipe.gin", f"--gin.MODEL_DIR='{work}/{name}'"]


@pytest.fixture(scope="module")
def whole(work, cache):
  """MODEL_DIR of a run without interruption."""
  config.run_verb(train.train, flags(work, "whole"))
  return work / "whole"


def checkpoints(folder: pathlib.Path) -> list[int]:
  if not folder.is_dir():
    return []
  return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_leaves_what_it_promises(whole):
  names = {path.name for path in whole.iterdir()}
  assert names == process_tools.LEFT
  found = lines(whole / "metrics.jsonl")
  steps = {split: [] for split in ("train", "validation")}
  for line in found:
    steps[line["split"]].append(line["step"])
  due = {n for n in range(1, STEPS + 1) if not (n % 5 and n % 8)}
  assert steps["train"] == sorted(due)
  assert steps["validation"] == list(range(20, STEPS + 1, 20))
  losses = [line["loss"] for line in found if line["split"] == "validation"]
  assert losses[-1] < losses[0]
  card = product.load(whole).card
  assert card["scores"]["loss"] == min(losses)
  assert card["task"]["labels"] == ["negative", "positive"]


def test_a_run_that_is_told_to_end_saves_and_goes_on(work, whole, monkeypatch, capsys):
  step = log.Log.step

  def tell(self, number):
    step(self, number)
    if number == 23:
      os.kill(os.getpid(), signal.SIGTERM)

  with monkeypatch.context() as patch:
    patch.setattr(log.Log, "step", tell)
    with pytest.raises(SystemExit) as stop:
      config.run_verb(train.train, flags(work, "told"))
  assert stop.value.code == 143
  assert "Told to end at step 23. Give the same command" in capsys.readouterr().out
  assert checkpoints(work / "told" / "checkpoints")[-1] == 23
  config.run_verb(train.train, flags(work, "told"))
  assert "Resumed from step 23." in capsys.readouterr().out
  product_file = "prompt/prompt.safetensors"
  assert (work / "told" / product_file).read_bytes() == (
    whole / product_file
  ).read_bytes()


def test_a_finished_run_is_left_as_it_is(work, whole):
  before = {
    p: p.read_bytes() for p in whole.glob("*") if p.suffix in (".gin", ".jsonl")
  }
  prompt = (whole / "prompt" / "prompt.safetensors").read_bytes()
  config.run_verb(train.train, flags(work, "whole"))
  assert {path: path.read_bytes() for path in before} == before
  assert (whole / "prompt" / "prompt.safetensors").read_bytes() == prompt


def test_another_configuration_is_refused(work, whole, capsys):
  with pytest.raises(SystemExit) as stop:
    config.run_verb(train.train, [*flags(work, "whole"), "--gin.LEARNING_RATE=0.2"])
  assert stop.value.code == 2
  assert "LEARNING_RATE: 0.05 there, 0.2 now" in capsys.readouterr().err


@pytest.fixture(scope="module")
def evaluated(work, whole):
  """EVAL_DIR of the prompt on its validation split."""
  (work / "eval.gin").write_text(
    'include "gin/eval.gin"\ninclude "gin/tasks/files.gin"\n'
    'include "gin/outputs/choice.gin"\nINPUTS = "review: {text}"\n'
    'LABELS = ("negative", "positive")\nEVAL_BATCH_SIZE = 8\n'
    f"DATA_DIR = '{work}'\nTRAIN_FILE = None\nVALIDATION_FILE = 'validation.tsv'\n"
    f"PROMPT_DIR = '{whole}/prompt'\nEVAL_DIR = '{work}/eval'\n"
  )
  config.run_verb(eval_verb.evaluate_prompt, [f"--gin_file={work}/eval.gin"])
  return work / "eval"


def test_eval_repeats_the_scores_of_training(whole, evaluated):
  scores = json.loads((evaluated / "metrics-validation.json").read_text())
  card = product.load(whole).card
  assert scores == pytest.approx(card["scores"], rel=1e-5)
  found = lines(evaluated / "predictions-validation.jsonl")
  right = sum(line["prediction"] == line["target"] for line in found)
  assert scores["accuracy"] == pytest.approx(100 * right / len(found))


def test_infer_answers_in_the_order_of_its_input(work, whole, evaluated):
  expected = lines(evaluated / "predictions-validation.jsonl")
  # The rows of validation and their reverse: more than one batch, the last one ragged.
  asked = [line["input"] for line in expected + expected[::-1]]
  # The template comes from the prompt's card.
  plain = [text.removeprefix("review: ") for text in asked]
  (work / "inputs.txt").write_text("\n".join(plain) + "\n")
  argv = [
    "--gin_file=gin/infer.gin",
    f"--gin.PROMPT_DIR='{whole}/prompt'",
    f"--gin.INPUT_FILE='{work}/inputs.txt'",
    f"--gin.OUTPUT_FILE='{work}/answers.jsonl'",
    "--gin.EVAL_BATCH_SIZE=8",
  ]
  assert config.run_verb(infer.infer, argv) == 20
  answers = lines(work / "answers.jsonl")
  assert [answer["input"] for answer in answers] == asked
  for answer, line in zip(answers, expected + expected[::-1], strict=True):
    assert list(answer["scores"]) == ["negative", "positive"]
    assert answer["scores"] == pytest.approx(line["scores"], rel=1e-4)
    assert answer["prediction"] == max(answer["scores"], key=answer["scores"].get)
    assert answer["prediction"] == line["prediction"]
  assert len({tuple(answer["scores"].values()) for answer in answers}) > 2

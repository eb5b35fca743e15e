"""A finished run, its best, and files that are not its own."""

import json
import shutil

import pytest
from run_tools import content, lines, start

from prompt_tuning.core import files
from prompt_tuning.engine import (
  fit,
  loop,
)

# ---- a finished run


def test_a_finished_run_says_so_and_writes_nothing_else(run):
  folder, again = run
  before = content(folder)
  said = again()
  assert f"finished at step 6; prompt: {folder / 'prompt'}" in said
  assert "trained" not in said
  after = content(folder)
  rewritten = {"config.gin", "run.json"}
  assert {n: x[0] for n, x in after.items() if n != "config.gin"} == {
    n: x[0] for n, x in before.items() if n != "config.gin"
  }
  assert {n for n in after if after[n] != before[n]} <= rewritten


def test_what_a_finished_run_gives_is_its_best(work, whole, run):
  fitted = start(work, "copy")
  card = json.loads((whole / "prompt" / "card.json").read_text())
  assert (fitted.best.step, fitted.best.scores) == (card["step"], card["scores"])


@pytest.mark.parametrize(
  ("steps", "words"), [(4, "Give 6 or more"), (0, "python -m prompt_tuning.eval")]
)
def test_fewer_steps_than_are_taken(run, steps, words):
  folder, again = run
  before = content(folder)
  said = again(f"TRAIN_STEPS={steps}", code=2)
  assert f"`TRAIN_STEPS` is {steps}" in said and "has taken 6 steps" in said
  assert words in said and len(said.splitlines()) == 1
  assert content(folder) == before


def test_evaluating_writes_one_line_however_often(work, cache, capsys):
  for _ in range(2):
    start(work, "bare", "TRAIN_STEPS=0")
  (line,) = lines(work / "bare")
  assert (line["step"], line["split"]) == (0, "validation")
  with pytest.raises(SystemExit):
    start(work, "bare", "TRAIN_STEPS=0", "SEED=9")
  assert "holds a run of another configuration" in capsys.readouterr().err


def test_a_rate_that_jumps_back_is_said(run):
  folder, again = run
  said = again("TRAIN_STEPS=8")
  assert "The learning rate was 0 at step 6 and goes on at 0.01429" in said
  assert [x["step"] for x in lines(folder) if x["split"] == "validation"] == [3, 6, 8]


# ---- the best


@pytest.mark.parametrize("place", ["prompt", "checkpoints/best"])
def test_a_lost_best_is_put_back_bit_for_bit(whole, run, place):
  folder, again = run
  shutil.rmtree(folder / place)
  said = again()
  assert ("put back from step" in said) == (place == "prompt")
  for name in ("card.json", "prompt.safetensors"):
    assert (folder / place / name).read_bytes() == (whole / place / name).read_bytes()


def test_what_a_kill_left_half_written_is_swept_from_both_places(run, monkeypatch):
  swept, (folder, again) = [], run
  monkeypatch.setattr(files, "sweep", swept.append)
  again()
  places = ".", "prompt", "checkpoints", "checkpoints/best"
  assert swept == [folder / place for place in places]


def test_a_best_that_is_nowhere_is_said(run):
  folder, again = run
  for place in ("prompt", "checkpoints/best"):
    shutil.rmtree(folder / place)
  said = again()
  assert "The product of the best step up to step 6 is gone" in said
  assert "the last one, 6, takes its place" in said
  assert json.loads((folder / "prompt" / "card.json").read_text())["step"] == 6


# ---- what is not a run's


@pytest.mark.parametrize(
  "name",
  [
    "checkpoints/",
    "config.gin",
    "learning-curve.png",
    "metrics.jsonl",
    "model-info.txt",
    "prompt/",
    "run.json",
    ".lock",
  ],
)
@pytest.mark.parametrize("steps", [6, 0])
def test_what_no_run_wrote_is_not_replaced(work, capsys, monkeypatch, name, steps):
  monkeypatch.setattr(fit, "prepare", lambda *args: pytest.fail("not refused first"))
  folder = work / "foreign"
  (folder / "prompt").mkdir(parents=True) if name == "prompt/" else folder.mkdir()
  path = folder / name / "mine" if name.endswith("/") else folder / name
  path.parent.mkdir(exist_ok=True)
  path.write_text("mine")
  before = content(folder)
  with pytest.raises(SystemExit):
    start(work, "foreign", f"TRAIN_STEPS={steps}")
  (line,) = capsys.readouterr().err.splitlines()
  assert name.rstrip("/") in line and "MODEL_DIR" in line
  assert content(folder) == before
  shutil.rmtree(folder)


def test_other_files_stay(work, cache):
  folder = work / "shared"
  (folder / "data").mkdir(parents=True)
  for name in ("notes.txt", "data/prompt", "checkpoint.txt"):
    (folder / name).write_text("mine")
  start(work, "shared", "TRAIN_STEPS=1")
  for name in ("notes.txt", "data/prompt", "checkpoint.txt"):
    assert (folder / name).read_text() == "mine"


@pytest.mark.parametrize(
  ("steps", "log_period", "period"),
  [
    (1000, 50, 100),
    (300, 50, 50),
    (60, 8, 8),
    (5, 0, 1),
    (10**6, 50, 1000),
    (0, 50, 0),
  ],
)
def test_when_a_run_saves_by_itself(steps, log_period, period):
  assert loop.save_period(steps, log_period) == period


def test_a_run_saves_by_itself(work, cache):
  start(work, "saving", "SAVE_PERIOD=None", "TRAIN_STEPS=20", "EVAL_PERIOD=0")
  found = {path.name for path in files.at(work / "saving" / "checkpoints").iterdir()}
  assert found == {"18", "20", "best"}
  logged = [x["step"] for x in lines(work / "saving") if x["split"] == "train"]
  assert logged == list(range(2, 21, 2))

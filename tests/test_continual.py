"""Tasks in sequence: the matrix and what follows from it, and whole runs."""

import json
import math
import os
import shutil
import signal

import numpy as np
import process_tools
import pytest

from prompt_tuning import train
from prompt_tuning.core import trainable as branches
from prompt_tuning.core.prompt import Prompt
from prompt_tuning.data.lists import Lists
from prompt_tuning.engine import config, evaluate, product, results, tables
from prompt_tuning.inits import uniform
from prompt_tuning.parameterisers.dense import Dense
from prompt_tuning.procedures.continual import (
  PerTask,
  Progressive,
  Sequential,
  figures,
)
from prompt_tuning.procedures.phase import Result, Table

# Before any task, and after each of three.
MATRIX = np.array([[10, 20, 30], [80, 25, 30], [60, 90, 50], [70, 50, 95.0]])


def test_what_follows_from_a_matrix_by_hand():
  found = figures(MATRIX, np.array([82.0, 85.0, 95.0]))
  assert found == pytest.approx(
    {
      "AA": (70 + 50 + 95) / 3,
      "diagonal": (80 + 90 + 95) / 3,
      # Best before the end minus the end, for the first two tasks.
      "F": ((80 - 70) + (90 - 50)) / 2,
      "BWT": ((70 - 80) + (50 - 90)) / 2,
      # Just before learning minus before any, for the last two.
      "FWT": ((25 - 20) + (50 - 30)) / 2,
      "LG": ((80 - 82) + (90 - 85) + (95 - 95)) / 3,
      "AA_1": 80,
      "AA_2": (60 + 90) / 2,
      "AA_3": (70 + 50 + 95) / 3,
    }
  )
  assert found["BWT"] >= -found["F"]
  # A later best counts as forgotten, too.
  risen = MATRIX.copy()
  risen[2, 0] = 99
  assert figures(risen, MATRIX[0])["F"] == ((99 - 70) + (90 - 50)) / 2


def test_one_task_forgets_nothing():
  found = figures(np.array([[10.0], [80.0]]), np.array([math.nan]))
  assert found["AA"] == found["diagonal"] == 80
  assert all(math.isnan(found[name]) for name in ("F", "BWT", "FWT", "LG"))


NAMES = ("one", "two", "three")
TASKS = {name: Lists(name=name, train=[("a", "b")]) for name in NAMES}


def followed(procedure, score=lambda name, t: 0.0):
  """All phases of a procedure, and results as a run would give them."""
  phases, done, learned = [], [], 0
  while (phase := procedure.next(done)) is not None:
    phases.append(phase)
    learned += phase.name.startswith("learn_")
    scores, shapes = {}, {"prompt/x": (1,)}
    if phase.measure is not None:
      names = phase.measure.tasks
      scores, shapes = {f"{n}/accuracy": score(n, learned) for n in names}, {}
    done.append(Result(phase.name, 1, 1, scores, {}, shapes))
  return phases, done


def test_sequential_carries_one_prompt_and_asks_all():
  procedure = Sequential(TASKS, order=("two", "one", "three"))
  phases, done = followed(procedure, lambda n, t: MATRIX[t, NAMES.index(n)])
  assert [phase.name for phase in phases] == [
    *("exam_0", "learn_two", "exam_1", "learn_one", "exam_2", "learn_three", "exam_3")
  ]
  starts = [phase.start for phase in phases]
  assert starts[0] == starts[1] == {} and starts[3] == {"prompt": "learn_two:prompt"}
  assert starts[4] == {"prompt": "learn_one:prompt"}
  assert phases[1].task is TASKS["two"]
  whole, _ = followed(Sequential(TASKS, carry=("backbone",)))
  assert whole[3].start == {"backbone": "learn_one:backbone"} == whole[2].start
  table = procedure.table(done)
  np.testing.assert_array_equal(table.values, MATRIX[:, [1, 0, 2]])
  assert procedure.product(done) == "learn_three"
  # Half-way, what is not known is NaN.
  half = procedure.table(done[:4]).values
  assert np.isfinite(half[:2]).all() and np.isnan(half[2:]).all()


def test_apart_nothing_is_forgotten_by_construction():
  procedure = PerTask(TASKS, singles=True)
  phases, done = followed(procedure, lambda n, t: MATRIX[t, NAMES.index(n)])
  assert all(not phase.start for phase in phases if phase.name.startswith("learn"))
  table = procedure.table(done)
  for i in range(3):
    assert (table.values[: i + 1, i] == MATRIX[0, i]).all()
    assert (table.values[i + 1 :, i] == MATRIX[i + 1, i]).all()
  assert table.figures["F"] == table.figures["BWT"] == 0
  assert math.isnan(table.figures["FWT"]) and not math.isnan(table.figures["LG"])
  assert any("by construction" in note for note in table.notes)
  assert procedure.product(done) == "learn_three"


def test_progressive_puts_a_new_prompt_in_front_of_frozen_ones():
  prompt = Prompt(2, Dense(uniform.zeros()), "encoder.input")
  phases, _ = followed(Progressive(TASKS, prompt=prompt))
  first, second, third = (p for p in phases if p.name.startswith("learn_"))
  assert first.prompt.names == ("of_one",) and not first.start
  assert third.prompt.names == ("of_three", "of_two", "of_one")
  assert third.prompt.lengths == {"encoder": 6}
  assert third.trainable == ("prompt/of_three",)
  assert third.start == {
    "prompt/of_one": "learn_two:prompt/of_one",
    "prompt/of_two": "learn_two:prompt/of_two",
  }
  assert second.start == {"prompt/of_one": "learn_one:prompt/of_one"}


@pytest.mark.parametrize(
  ("given", "words"),
  [
    ({"tasks": {}}, "it must map at least one name"),
    ({"tasks": {"a b": None}}, "a word of letters"),
    ({"order": ("one", "two")}, r"`order` is \['one', 'two'\]; it must name each"),
  ],
)
def test_what_is_no_sequence(given, words):
  with pytest.raises(ValueError, match=words):
    Sequential(**{"tasks": TASKS, **given})


def test_a_score_that_no_task_gives():
  procedure = Sequential(TASKS, metric="f1")
  with pytest.raises(ValueError, match="metric` is 'f1', which the task 'one' does"):
    procedure.table(followed(Sequential(TASKS))[1])


@pytest.mark.parametrize("prompt", [None, "P", 5])
def test_progressive_needs_the_sentence_of_a_prompt(prompt):
  with pytest.raises(ValueError, match=r"`Progressive.prompt` is .* the sentence of"):
    Progressive(tasks=TASKS, prompt=prompt)


def test_a_table_is_printed_and_kept(tmp_path):
  values = np.array([[1.0, math.nan], [22.125, 100.0]])
  table = Table("t", ["before", "after"], ["one", "two"], values, {"AA": math.nan})
  text = tables.text(table)
  assert text.splitlines()[2].split() == ["before", "1", "-"]
  assert "22.12" in text and "AA -" in text
  tables.write(tmp_path, table)
  kept = json.loads((tmp_path / "t.json").read_text())
  assert kept["values"] == [[1.0, None], [22.125, 100.0]]
  assert (tmp_path / "t.png").read_bytes()[:4] == b"\x89PNG"


# ---- whole runs

TAIL = """from __gin__ import dynamic_registration
from prompt_tuning.data import files
include "{work}/recipe.gin"
include "gin/outputs/choice.gin"
include "gin/procedures/{kind}.gin"
TASK_SEQUENCE = {{"first": @files.Files(), "second": @flipped/files.Files()}}
flipped/files.Files:
  name = "flipped"
  label_map = {{"positive": "negative", "negative": "positive"}}
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory, tiny_folder, cache):
  folder = tmp_path_factory.mktemp("continual")
  shutil.copytree(tiny_folder, folder / "backbone")
  recipe = process_tools.RECIPE + "TRAIN_STEPS = 3\nEVAL_PERIOD = 0\n"
  process_tools.write_task(folder, f"{folder}/backbone", recipe)
  for kind in ("sequential", "per_task", "progressive"):
    (folder / f"{kind}.gin").write_text(TAIL.format(work=folder, kind=kind))
  return folder


def start(work, kind, name):
  flags = [f"--gin_file={work}/{kind}.gin", f"--gin.MODEL_DIR='{work}/{name}'"]
  return config.run_verb(train.train, flags)


@pytest.mark.parametrize(
  ("flag", "words"),
  [
    ("SEQUENCE_METRIC='f1'", "error: `SEQUENCE_METRIC` is 'f1', but evaluation gives"),
    ("BEST_METRIC='f1'", "error: `BEST_METRIC` is 'f1', but evaluation gives"),
    ("TASK_SEQUENCE={'a/b': %TASK}", "error: `TASK_SEQUENCE` has the names ['a/b']"),
  ],
)
def test_what_a_later_phase_asks_is_refused_before_the_first(work, flag, words, capsys):
  flags = [f"--gin_file={work}/sequential.gin", f"--gin.MODEL_DIR='{work}/refused'"]
  with pytest.raises(SystemExit) as stop:
    config.run_verb(train.train, [*flags, f"--gin.{flag}"])
  assert stop.value.code == 2
  assert capsys.readouterr().err.startswith(words)
  assert not (work / "refused").exists()


class Killed(BaseException):
  """The process is gone."""


@pytest.mark.slow
def test_a_sequence_killed_on_its_way_ends_the_same(work, capsys):
  start(work, "sequential", "whole")
  said = capsys.readouterr().out
  kept = json.loads((work / "whole" / "accuracy-matrix.json").read_text())
  assert kept["rows"] == ["before any", "after first", "after second"]
  assert "accuracy-matrix\n" in said and "after second" in said and "BWT" in said
  assert (work / "whole" / "accuracy-matrix.png").is_file()
  write, seen = results.write, []

  def killed(folder, name, *rest):
    if name == "learn_second":
      raise Killed
    seen.append(name)
    write(folder, name, *rest)

  with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
    patch.setattr(results, "write", killed)
    start(work, "sequential", "killed")
  assert seen == ["exam_0", "learn_first", "exam_1"]
  start(work, "sequential", "killed")
  for name in ("accuracy-matrix.json", "prompt/prompt.safetensors"):
    one, other = ((work / run / name).read_bytes() for run in ("whole", "killed"))
    assert one == other


def test_told_to_end_in_an_exam_it_is_taken_again(work, monkeypatch, capsys):
  loss = evaluate.Evaluator.loss

  def told(self, *rest):
    os.kill(os.getpid(), signal.SIGTERM)
    return loss(self, *rest)

  with monkeypatch.context() as patch:
    patch.setattr(evaluate.Evaluator, "loss", told)
    with pytest.raises(SystemExit) as stop:
      start(work, "sequential", "told")
  assert stop.value.code == 143
  assert "Told to end while measuring." in capsys.readouterr().out
  assert not list((work / "told").glob("phases/*/result.json"))


@pytest.mark.slow
def test_progressive_prompts_keep_those_before_bit_for_bit(work):
  start(work, "progressive", "progressive")
  folders = sorted((work / "progressive" / "phases").glob("*_learn_*"))
  first, second = (product.load(folder / "prompt") for folder in folders)
  assert list(branches.flatten(second.trainable)) == [
    "prompt/of_second/parameterise/prompt"
  ]
  name = "prompt/of_first/parameterise/prompt"
  np.testing.assert_array_equal(
    branches.flatten(second.frozen)[name], branches.flatten(first.trainable)[name]
  )
  assert second.module.lengths == {"encoder": 8}
  kept = json.loads((work / "progressive" / "accuracy-matrix.json").read_text())
  assert kept["figures"]["F"] == kept["figures"]["BWT"] == 0
  assert kept["figures"]["FWT"] is None


@pytest.mark.slow
def test_per_task_prompts_are_runs_of_their_own(work):
  start(work, "per_task", "apart")
  flags = [f"--gin_file={work}/recipe.gin", f"--gin.MODEL_DIR='{work}/alone'"]
  config.run_verb(train.train, [*flags, "--gin_file=gin/outputs/choice.gin"])
  (folder,) = (work / "apart" / "phases").glob("*_learn_first")
  one, other = (
    (place / "prompt" / "prompt.safetensors").read_bytes()
    for place in (folder, work / "alone")
  )
  assert one == other

"""Runs of several phases: plain, staged; killed anywhere, they end the same."""

import json
import os
import shutil
import signal

import numpy as np
import process_tools
import pytest

from prompt_tuning import train
from prompt_tuning.core import trainable as branches
from prompt_tuning.engine import (
  config,
  fit,
  log,
  loop,
  model_dir,
  phases,
  product,
  results,
)
from prompt_tuning.engine.checkpoint import Checkpoints

NUMBERS = {"TRAIN_STEPS": 4, "SAVE_PERIOD": 2, "EVAL_PERIOD": 2, "LOG_PERIOD": 2}
RECIPE = process_tools.RECIPE
RECIPE += "".join(f"{name} = {value}\n" for name, value in NUMBERS.items())
STAGED = """from __gin__ import dynamic_registration
from prompt_tuning.procedures import phase
from prompt_tuning.procedures import staged
from prompt_tuning.procedures import surgery
include "{recipe}"
PROCEDURE = @staged.Staged()
staged.Staged.phases = [@first/phase.Phase(), @second/phase.Phase()]
first/phase.Phase:
  name = "first"
  keep = "last"
  steps = 3
second/phase.Phase:
  name = "second"
  start = {{"prompt": "first:prompt"}}
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory, tiny_folder):
  folder = tmp_path_factory.mktemp("phases")
  shutil.copytree(tiny_folder, folder / "backbone")
  process_tools.write_task(folder, f"{folder}/backbone", RECIPE)
  text = STAGED.format(recipe=folder / "recipe.gin")
  (folder / "staged.gin").write_text(text)
  return folder


def start(work, name, *flags, recipe="staged"):
  given = [f"--gin_file={work}/{recipe}.gin", f"--gin.MODEL_DIR='{work}/{name}'"]
  return config.run_verb(train.train, [*given, *(f"--gin.{flag}" for flag in flags)])


def tensors(folder):
  made = product.load(folder)
  return {**branches.flatten(made.frozen), **branches.flatten(made.trainable)}


def data(folder):
  return (folder / "prompt.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(work, cache):
  start(work, "whole")
  return work / "whole"


def test_every_phase_is_a_run_in_its_own_folder(whole):
  first, second = whole / "phases" / "00_first", whole / "phases" / "01_second"
  for folder, steps in ((first, 3), (second, 4)):
    left = {path.name for path in folder.iterdir()}
    assert process_tools.LEFT | {"result.json"} == left
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    assert lines[-1]["step"] == steps
  assert {path.name for path in whole.iterdir()} == {
    "config.gin",
    "run.json",
    "phases",
    "prompt",
  }
  assert data(whole / "prompt") == data(second / "prompt")
  # The first phase keeps its last step, whatever its scores.
  assert json.loads((first / "prompt" / "card.json").read_text())["step"] == 3
  assert json.loads((second / "run.json").read_text())["identity"]["start"]
  assert product.load(whole).card["phase"] == "second"


def test_a_phase_starts_where_its_start_says(work, whole, monkeypatch):
  """With state, optimiser and schedule anew."""
  seen = []

  def stop(step, state, *rest, **others):
    seen.append(state)
    raise ValueError("seen")

  monkeypatch.setattr(loop, "run", stop)
  shutil.copytree(whole, work / "stopped")
  shutil.rmtree(work / "stopped" / "phases" / "01_second")
  with pytest.raises(SystemExit):
    start(work, "stopped")
  (state,) = seen
  first = tensors(whole / "phases" / "00_first" / "prompt")
  now = branches.flatten(state.trainable)
  assert int(state.step) == 0
  for name, value in first.items():
    np.testing.assert_array_equal(now[name], value)
  moments = [leaf for leaf in map(np.asarray, _leaves(state.optimizer)) if leaf.ndim]
  assert moments and not any(moment.any() for moment in moments)
  shutil.rmtree(work / "stopped")


def _leaves(tree):
  import jax

  return jax.tree.leaves(tree)


class Killed(BaseException):
  """The process is gone: nothing is brought to an end."""


def kill_at(monkeypatch, where):
  """The `where`-th of all moments at which something is on disk kills the run."""
  moments = [0]

  def counted(function):
    def call(*args, **kwargs):
      if moments[0] == where:
        raise Killed
      moments[0] += 1
      return function(*args, **kwargs)

    return call

  monkeypatch.setattr(results, "write", counted(results.write))
  monkeypatch.setattr(phases.kept, "copy", counted(phases.kept.copy))
  monkeypatch.setattr(Checkpoints, "save", counted(Checkpoints.save))
  monkeypatch.setattr(fit, "prepare", counted(fit.prepare))
  return moments


@pytest.mark.slow
def test_killed_at_any_moment_the_same_command_ends_the_same(work, whole, monkeypatch):
  with monkeypatch.context() as patch:
    moments = kill_at(patch, -1)
    start(work, "counted")
  count = moments[0]
  assert count == 2 * 4 + 1
  for where in range(count):
    with monkeypatch.context() as patch:
      kill_at(patch, where)
      with pytest.raises(Killed):
        start(work, "killed")
    start(work, "killed")
    assert data(work / "killed" / "prompt") == data(whole / "prompt"), where
    shutil.rmtree(work / "killed")


def test_told_to_end_it_saves_the_phase_that_is_under_way(work, whole, monkeypatch):
  step = log.Log.step

  def told(self, number):
    step(self, number)
    if self.folder.name == "01_second" and number == 1:
      os.kill(os.getpid(), signal.SIGTERM)

  with monkeypatch.context() as patch:
    patch.setattr(log.Log, "step", told)
    with pytest.raises(SystemExit) as stop:
      start(work, "told")
  assert stop.value.code == 143
  folder = work / "told" / "phases" / "01_second"
  assert (folder / "checkpoints" / "1").is_dir()
  assert not (folder / "result.json").exists() and not (work / "told/prompt").exists()
  start(work, "told")
  assert data(work / "told" / "prompt") == data(whole / "prompt")


def test_a_finished_run_goes_through_no_phase_again(work, whole, monkeypatch, capsys):
  monkeypatch.setattr(fit, "prepare", lambda *_: pytest.fail("a phase ran again"))
  start(work, "whole")
  assert "finished: 2 phases; prompt: " in capsys.readouterr().out
  # A done phase would have been longer.
  with pytest.raises(SystemExit) as stop:
    start(work, "whole", "TRAIN_STEPS=8")
  assert (
    stop.value.code == 2 and "TRAIN_STEPS: 4 there, 8 now" in capsys.readouterr().err
  )


def test_one_phase_is_the_run_itself_bit_for_bit(work, whole):
  (work / "plain.gin").write_text(
    "from __gin__ import dynamic_registration\n"
    "from prompt_tuning.procedures import plain\n"
    f'include "{work}/recipe.gin"\nPROCEDURE = @plain.Plain()\n'
  )
  start(work, "plain", recipe="plain")
  start(work, "run", recipe="recipe")
  assert data(work / "plain" / "prompt") == data(work / "run" / "prompt")
  lines = [
    (folder / "metrics.jsonl").read_text()
    for folder in (work / "run", work / "plain" / "phases" / "00_train")
  ]
  assert lines[0] == lines[1]


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ('{"prompt": "frst:prompt"}', "is no phase before it (those are ['first'])"),
    ('{"prompt": "first"}', "reads 'first' for 'prompt'; a branch is written"),
    ('{"prompt": 3}', "it must map the path of a branch"),
    ('{"prompt": "nowhere/prompt:prompt"}', "and no folder with a product"),
    ('{"prompt": "first:backbone"}', "holds no 'backbone'. It holds ['prompt/param"),
    ('{"promt": "first:prompt"}', "starts its branch 'promt', which it does not have"),
    (
      '{"prompt/parameterise/prompt": @surgery.Tile()}\nsurgery.Tile:\n'
      '  of = "first:prompt/parameterise/prompt"\n  count = 2',
      "gives (2, 1, 4, 16) where (1, 4, 16) is needed",
    ),
  ],
)
def test_a_start_that_fits_nowhere_is_refused(work, whole, change, words, capsys):
  text = (work / "staged.gin").read_text()
  (work / "wrong.gin").write_text(text.replace('{"prompt": "first:prompt"}', change))
  folder = work / "wrong" / "phases" / "00_first"
  # As if the first phase were done.
  shutil.copytree(whole / "phases" / "00_first", folder)
  with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
    patch.setattr(model_dir, "_check_run", lambda *_: None)
    start(work, "wrong", recipe="wrong")
  line = capsys.readouterr().err
  shutil.rmtree(work / "wrong")
  assert words in line


def test_a_result_that_is_damaged_or_gone_is_refused(work, whole, capsys):
  shutil.copytree(whole, work / "damaged")
  place = work / "damaged" / "phases" / "00_first"
  (place / "result.json").write_text("{")
  with pytest.raises(SystemExit):
    start(work, "damaged")
  assert "result.json' is damaged" in capsys.readouterr().err
  shutil.copy(whole / "phases" / "00_first" / "result.json", place)
  shutil.rmtree(place / "prompt")
  with pytest.raises(SystemExit):
    start(work, "damaged")
  assert "is gone, on which later phases stand" in capsys.readouterr().err
  shutil.rmtree(work / "damaged")


TAUGHT = """from __gin__ import dynamic_registration
from prompt_tuning.objectives import distil
from prompt_tuning.procedures import phase
include "{work}/staged.gin"
second/phase.Phase:
  teachers = {{"before": "first"}}
  objective = @distil.Distil()
distil.Distil.teacher = "before"
LEARNING_RATE = 1e-6
"""


def test_an_earlier_phase_teaches_and_is_not_handed_on(work):
  """A student that begins as its teacher has nothing to learn."""
  (work / "taught.gin").write_text(TAUGHT.format(work=work))
  start(work, "taught", recipe="taught")
  folder = work / "taught" / "phases" / "01_second"
  scores = json.loads((folder / "result.json").read_text())["scores"]
  assert abs(scores["loss"]) < 1e-4
  assert set(tensors(folder / "prompt")) == {"prompt/parameterise/prompt"}
  assert json.loads((folder / "run.json").read_text())["identity"]["teachers"]


SPOT = """include "{recipe}"
include "gin/methods/spot.gin"
SOURCE_TASK = %TASK
SOURCE_STEPS = 3
PROMPT_LENGTH = 4
LEARNING_RATE = 0.05
"""


def test_a_prompt_goes_on_in_one_file_as_in_two_commands(work):
  (work / "spot.gin").write_text(SPOT.format(recipe=work / "recipe.gin"))
  start(work, "spot", recipe="spot")
  start(work, "source", "TRAIN_STEPS=3", recipe="recipe")
  flags = [f"--gin_file={work}/recipe.gin", "--gin_file=gin/inits/saved.gin"]
  flags += [
    f"--gin.MODEL_DIR='{work}/target'",
    f"--gin.PROMPT_FILE='{work}/source/prompt'",
  ]
  config.run_verb(train.train, flags)
  for place, other in (("source", "00_source"), ("target", "01_target")):
    one = data(work / place / "prompt")
    assert one == data(work / "spot" / "phases" / other / "prompt"), place
  assert product.load(work / "spot").card["method"] == "spot"


def test_a_task_that_is_not_given_is_refused_before_anything_runs(work, capsys):
  text = SPOT.format(recipe=work / "recipe.gin").replace("SOURCE_TASK = %TASK\n", "")
  (work / "open.gin").write_text(text)
  with pytest.raises(SystemExit):
    start(work, "open", recipe="open")
  assert "`SOURCE_TASK` is None; it must be an object" in capsys.readouterr().err
  assert not (work / "open").exists()


@pytest.mark.parametrize(
  ("lines", "words"),
  [
    ("first/phase.Phase.metric = 'f1'", "`Phase.metric` of 'first' is 'f1', but"),
    ("second/phase.Phase.metric = 'f1'", "`Phase.metric` of 'second' is 'f1', but"),
    ("BEST_METRIC = 'f1'", "`BEST_METRIC` is 'f1', but evaluation gives"),
    (
      "prompt.Prompt.transforms = [@mask.Mask()]\nmask.Mask.pieces = 7",
      "is 7; it",
    ),
  ],
)
def test_what_no_phase_can_do_is_refused_before_the_first(work, lines, words, capsys):
  text = STAGED.format(recipe=work / "recipe.gin")
  imports = "from prompt_tuning.core import prompt\n"
  imports += "from prompt_tuning.transforms import mask\n"
  head, rest = text.split("\n", 1)
  (work / "early.gin").write_text(f"{head}\n{imports}{rest}{lines}\n")
  with pytest.raises(SystemExit) as stop:
    start(work, "early", recipe="early")
  assert stop.value.code == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert words in line
  assert not (work / "early").exists()


@pytest.mark.parametrize("method", ["spot", "xprompt", "mpt_staged"])
def test_tune_refuses_what_has_several_phases_by_name(method, tiny_folder):
  import prompt_tuning as pt

  pairs = [("a film", "good"), ("a bore", "bad")]
  with pytest.raises(ValueError, match=f"`method` is '{method}', a run of several"):
    pt.tune(pt.load_model(tiny_folder), pairs, method=method, prompt_length=3)


def test_a_schedule_is_stretched_to_the_steps_of_a_phase():
  """A source of three times the steps warms up and falls three times as slowly."""
  from prompt_tuning.engine import groups, optimizer

  own = optimizer.warmup_linear(0.5, 10, 100)
  other = optimizer.warmup_linear(0.1, 0, 100)
  given = optimizer.Optimizer(
    optimizer.Adafactor(), own, None, {"prompt": other}, {"x": groups.Group()}
  )
  long = given.stretched(100 / 300)
  for step in (0, 15, 30, 150, 299):
    assert float(long.schedule(step)) == pytest.approx(float(own(step / 3)), abs=1e-6)
    found = float(long.branch_schedules["prompt"](step))
    assert found == pytest.approx(float(other(step / 3)), abs=1e-6)
  assert float(long.schedule(299)) > 0 and long.groups["x"].schedule is None

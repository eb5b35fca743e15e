"""What a run is, and how it ends: identity, damage, signals, evaluations left."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import process_tools
import pytest

from prompt_tuning import train
from prompt_tuning.core import files
from prompt_tuning.data import vocabularies
from prompt_tuning.data.lists import Lists
from prompt_tuning.engine import (
  config,
  distributed,
  early,
  evaluate,
  fit,
  identity,
  interrupt,
  log,
  loop,
  model_dir,
  records,
)

# Few steps: 6, evaluated at 3 and 6, saved at the end alone.
RECIPE = process_tools.RECIPE.replace("gin/methods", "gin/schedules/warmup_linear.gin"
  '"\ninclude "gin/methods', 1)  # fmt: skip
NUMBERS = {"TRAIN_STEPS": 6, "SAVE_PERIOD": 0, "EVAL_PERIOD": 3, "LOG_PERIOD": 2}
RECIPE += "WARMUP_STEPS = 1\n"
RECIPE += "".join(f"{name} = {value}\n" for name, value in NUMBERS.items())


@pytest.fixture(scope="module")
def work(tmp_path_factory, tiny_folder):
  """A folder with the data, the recipe and a backbone of its own."""
  folder = tmp_path_factory.mktemp("runs")
  shutil.copytree(tiny_folder, folder / "backbone")
  process_tools.write_task(folder, f"{folder}/backbone", RECIPE)
  return folder


def start(work, name, *flags):
  """Trains MODEL_DIR work/name; what the verb gives."""
  given = [f"--gin_file={work}/recipe.gin", f"--gin.MODEL_DIR='{work}/{name}'"]
  return config.run_verb(train.train, [*given, *(f"--gin.{flag}" for flag in flags)])


@pytest.fixture(scope="module")
def whole(work, cache):
  """MODEL_DIR of a finished run."""
  start(work, "whole")
  return work / "whole"


@pytest.fixture
def run(work, whole, capsys):
  """(a copy of the finished run; gives it again, and returns what is said)."""
  folder = work / "copy"
  shutil.copytree(whole, folder)

  def again(*flags, code=0):
    if code:
      with pytest.raises(SystemExit) as stop:
        start(work, "copy", *flags)
      assert stop.value.code == code
    else:
      start(work, "copy", *flags)
    said = capsys.readouterr()
    return said.err if code else said.out

  yield folder, again
  shutil.rmtree(folder)


def content(folder: pathlib.Path) -> dict[str, tuple[bytes, int]]:
  """Bytes and time of every file."""
  return {
    str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
    for path in folder.rglob("*")
    if path.is_file()
  }


def lines(folder):
  return [json.loads(line) for line in (folder / "metrics.jsonl").open()]


def tensors(folder):
  return (folder / "prompt" / "prompt.safetensors").read_bytes()


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


# ---- what a run hangs on


def other_backbone(work):
  import safetensors.numpy

  path = work / "backbone" / "model.safetensors"
  weights = safetensors.numpy.load_file(path)
  name = sorted(weights)[0]
  safetensors.numpy.save_file({**weights, name: weights[name] + 1}, path)


def other_table(name):
  def change(work):
    path = work / f"{name}.tsv"
    path.write_text(path.read_text().replace("number 3", "number three"))

  return change


def other_vocabulary(work):
  from sentencepiece import sentencepiece_model_pb2

  path = work / "backbone" / "spiece.model"
  model = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
  model.pieces[20].score, model.pieces[21].score = -1.0, -2.0
  path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (other_table("train"), "The training split of the run"),
    (other_table("validation"), "The validation split of the run"),
    (other_backbone, "The backbone of the run"),
    (other_vocabulary, "The vocabulary of the run"),
  ],
)
def test_what_lies_under_the_same_paths_is_compared(work, run, change, words):
  folder, again = run
  before = content(folder)
  kept = {
    path: path.read_bytes()
    for path in [*work.glob("*.tsv"), *(work / "backbone").iterdir()]
  }
  try:
    change(work)
    # As a new process would.
    vocabularies.sentencepiece.cache_clear()
    said = again("TRAIN_STEPS=8", code=2)
  finally:
    for path, data in kept.items():
      path.write_bytes(data)
    vocabularies.sentencepiece.cache_clear()
  assert words in said and " changed: " in said and len(said.splitlines()) == 1
  assert content(folder) == before


def test_what_changes_nothing_may_change(work, run, tmp_path):
  for name in ("train", "validation"):
    shutil.copy(work / f"{name}.tsv", tmp_path / f"moved-{name}.tsv")
  shutil.copytree(work / "backbone", tmp_path / "backbone")
  _, again = run
  said = again(
    f"DATA_DIR='{tmp_path}'",
    "TRAIN_FILE='moved-train.tsv'",
    "VALIDATION_FILE='moved-validation.tsv'",
    f"INITIAL_CHECKPOINT_PATH='{tmp_path}/backbone'",
    "EVAL_BATCH_SIZE=5",
    "LOG_PERIOD=1",
  )
  assert "finished at step 6" in said


def test_settings_that_may_change_exist(root):
  paths = [*root.glob("gin/**/*.gin"), *root.glob("configs/**/*.gin")]
  text = "\n".join(path.read_text() for path in paths)
  for name, why in model_dir.MAY_CHANGE.items():
    last = name.rsplit(".", 1)[-1]
    assert re.search(rf"^ *(\S+\.)?{last} = |%{last}\b", text, re.MULTILINE), name
    assert why


def test_digests_see_order_and_borders():
  one = Lists(train=[("ab", "c"), ("d", "e")])
  assert identity.data(one, None, "train").startswith("2 examples ")
  others = [
    Lists(train=[("d", "e"), ("ab", "c")]),
    Lists(train=[("a", "bc"), ("d", "e")]),
  ]
  found = {identity.data(task, None, "train") for task in (one, *others)}
  assert len(found) == 3


class Stream:
  """A task that is read on and on, with or without a seed."""

  streams, name = True, "stream"

  def __init__(self, seeded):
    self.draw, self.seeded = np.random.default_rng(0), seeded

  def dataset(self, vocabulary, split):
    draw = np.random.default_rng(0) if self.seeded else self.draw
    rows = [{"inputs": draw.integers(0, 99, 4), "text": b"\xff"} for _ in range(300)]
    return type("Dataset", (), {"as_numpy_iterator": lambda self: iter(rows)})()


def test_a_stream_is_known_by_its_first_examples_if_they_repeat():
  assert identity.data(Stream(True), None, "train").startswith("first 256 examples ")
  assert identity.data(Stream(False), None, "train") is None


def test_processes_with_other_data_are_refused(monkeypatch):
  def all_rows(rows):
    other = rows.copy()
    other[1] += 1
    return np.stack([rows, other])

  monkeypatch.setattr(distributed, "several", lambda: True)
  monkeypatch.setattr(distributed, "_gathered", all_rows)
  with pytest.raises(
    ValueError, match="The vocabulary of process 1 is not that of the f"
  ):
    distributed.same({"backbone": "a", "vocabulary": "b"})
  monkeypatch.setattr(distributed, "_gathered", lambda x: np.stack([x, x]))
  distributed.same({"backbone": "a", "vocabulary": "b"})
  monkeypatch.setattr(distributed, "_gathered", lambda x: np.array([x, x + 1]))
  with pytest.raises(ValueError, match="Process 1 could not go on; it says why"):
    distributed.together(lambda: None)


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


# ---- damaged files


BAD_LINES = [
  b"5",
  b"null",
  b"{}",
  b'"text"',
  b"\xff\xfe",
  b'{"step": 4, "spl',
  b'{"step": true, "split": "train"}',
  b'{"step": 1, "split": "train", "loss": "low"}',
  b"[" * 100_000,
]


def test_damaged_lines_are_left_out(run, whole):
  folder, again = run
  good = (folder / "metrics.jsonl").read_bytes()
  (folder / "metrics.jsonl").write_bytes(good + b"\n".join(BAD_LINES))
  number = good.count(b"\n") + 1
  said = again()
  assert f"metrics.jsonl: lines {number}, {number + 1}, " in said
  assert "are damaged and left out." in said
  assert (folder / "metrics.jsonl").read_bytes() == good


@pytest.mark.parametrize("bad", BAD_LINES)
def test_each_kind_of_damaged_line(tmp_path, bad):
  path, good = tmp_path / "metrics.jsonl", b'{"step": 2, "split": "train", "loss": 1.5}'
  path.write_bytes(good + b"\n" + bad + b"\n" + good)
  found, damaged = records.read_lines(path)
  assert [line["loss"] for _, line in found] == [1.5, 1.5] and damaged == [2]
  again = log.Log(tmp_path, 9, 2, tensorboard=False, quiet=True)
  again.write(3, "train", {"loss": 1.0})
  assert path.read_bytes().count(b"\n") == 3


@pytest.mark.parametrize(
  ("name", "text", "words"),
  [
    ("config.gin", "\x00\x01 rubbish", "binds no MODEL_DIR: it is damaged"),
    ("config.gin", b"\xff\xff", "is not UTF-8"),
    ("run.json", "{", "is damaged (Expecting property name"),
    ("run.json", '{"format": 1}', "its format is 1"),
  ],
)
def test_damage_that_stops_a_run_is_one_sentence(run, name, text, words):
  folder, again = run
  data = text if isinstance(text, bytes) else text.encode()
  (folder / name).write_bytes(data)
  before = content(folder)
  said = again(code=2)
  assert words in said and name in said and len(said.splitlines()) == 1
  assert content(folder) == before


@pytest.mark.parametrize(
  "card",
  [
    "",
    "[]",
    "{}",
    '{"step": 3}',
    '{"step": -1, "scores": {"loss": 1.0}}',
    '{"step": 3, "scores": {"loss": "low"}}',
    '{"step": 3, "scores": {"loss": 1.0}, "shapes": {}}',
  ],
)
def test_a_damaged_card_is_put_back(run, whole, card):
  folder, again = run
  (folder / "prompt" / "card.json").write_text(card)
  (folder / ".lock").write_text("rubbish")
  said = again()
  assert f"{folder / 'prompt'} is damaged (" in said and "put back" in said
  right = (whole / "prompt" / "card.json").read_bytes()
  assert (folder / "prompt" / "card.json").read_bytes() == right


def test_no_card_of_a_run_is_asked_for_code(run):
  folder, again = run
  evil = {"class": "prompt_tuning.data.registered:Registered", "module": "evil"}
  for place in ("prompt", "checkpoints/best"):
    path = folder / place / "card.json"
    card = json.loads(path.read_text())
    path.write_text(json.dumps({**card, "module": {**evil, "name": "x"}}))
  (folder / "evil.py").write_text("raise SystemExit('ran')")
  sys.path.insert(0, str(folder))
  try:
    assert "finished at step 6" in again()
  finally:
    sys.path.remove(str(folder))


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


# ---- how a run ends


def told_at(monkeypatch, step, number):
  """A signal after a step."""
  before = log.Log.step

  def tell(self, done):
    before(self, done)
    if done == step:
      os.kill(os.getpid(), number)

  monkeypatch.setattr(log.Log, "step", tell)


@pytest.mark.parametrize(
  ("number", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_other_signals_end_a_run_as_sigterm_does(
  work, whole, capsys, monkeypatch, number, code
):
  name = f"told-{code}"
  handlers = [signal.getsignal(n) for n in interrupt.CODES]
  with monkeypatch.context() as patch:
    told_at(patch, 4, number)
    with pytest.raises(SystemExit) as stop:
      start(work, name)
  assert stop.value.code == code
  assert "Told to end at step 4. Give the same command" in capsys.readouterr().out
  assert [signal.getsignal(n) for n in interrupt.CODES] == handlers
  start(work, name)
  assert "Resumed from step 4." in capsys.readouterr().out
  assert tensors(work / name) == tensors(whole)


def test_an_evaluation_is_left_and_made_up_for(work, whole, capsys, monkeypatch):
  loss, seen = evaluate.Evaluator.loss, []

  def slow(self, params, examples):
    seen.append(len(examples))
    before = self.between

    def between():
      before()
      if len(seen) == 2:
        os.kill(os.getpid(), signal.SIGTERM)

    self.between = between
    return loss(self, params, examples)

  for step, flags in ((6, ()), (3, ("SAVE_PERIOD=2",))):
    name = f"left-{step}"
    with monkeypatch.context() as patch:
      patch.setattr(evaluate.Evaluator, "loss", slow)
      seen[:] = [0] if step == 3 else []
      with pytest.raises(SystemExit) as stop:
        start(work, name, *flags)
    assert stop.value.code == 143
    assert f"Told to end at step {step}." in capsys.readouterr().out
    validated = [x["step"] for x in lines(work / name) if x["split"] == "validation"]
    assert validated == [3][: step // 6]
    assert (work / name / "checkpoints" / str(step)).is_dir()
    start(work, name, *flags)
    assert f"Resumed from step {step}." in capsys.readouterr().out
    assert tensors(work / name) == tensors(whole)
    for folder in (work / name, whole):
      found = [x for x in lines(folder) if x["split"] == "validation"]
      assert [x["step"] for x in found] == [3, 6]
    assert found == [x for x in lines(work / name) if x["split"] == "validation"]


SIGNALS = """
import sys, time
from prompt_tuning.engine import interrupt
with interrupt.on_signals() as told:
  print("ready", flush=True)
  while not told(0):
    time.sleep(0.01)
  print("told", flush=True)
  time.sleep(60)
"""


def test_a_second_signal_ends_at_once(root):
  child = subprocess.Popen(
    [sys.executable, "-c", SIGNALS],
    env={**os.environ, "PYTHONPATH": str(root)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  try:
    assert child.stdout.readline() == "ready\n"
    # Twice within a moment is once: `timeout` does so.
    child.send_signal(signal.SIGINT)
    child.send_signal(signal.SIGTERM)
    assert child.stdout.readline() == "told\n"
    time.sleep(2 * interrupt.ONCE)
    assert child.poll() is None
    begin = time.monotonic()
    child.send_signal(signal.SIGINT)
    assert child.wait(10) == 130
    assert time.monotonic() - begin < 5
    assert "ended at once" in child.stderr.read()
  finally:
    child.kill()
    child.communicate()


def test_ctrl_c_before_training_is_a_line(work, capsys, monkeypatch):
  def interrupted(*args):
    raise KeyboardInterrupt

  monkeypatch.setattr(fit, "prepare", interrupted)
  with pytest.raises(SystemExit) as stop:
    start(work, "early")
  assert stop.value.code == 130
  assert "before training began; nothing was written" in capsys.readouterr().err
  assert not (work / "early").exists()


def test_ctrl_c_while_a_program_starts_is_a_line(root):
  code = (
    "from prompt_tuning.engine import early; early.catch(); print('ready', flush=1)"
  )
  child = subprocess.Popen(
    [sys.executable, "-c", f"{code}; import time; time.sleep(60)"],
    env={**os.environ, "PYTHONPATH": str(root)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert child.stdout.readline() == "ready\n"
  child.send_signal(signal.SIGINT)
  _, said = child.communicate(timeout=30)
  assert child.returncode == early.EXIT_CODE == interrupt.CODES[signal.SIGINT]
  assert len(said.splitlines()) == 1 and "Told to end" in said


PIPE = """
import sys
from prompt_tuning.engine.log import Log
log = Log(sys.argv[1], 4, tensorboard=False)
log.say("ready")
sys.stdin.readline()
for step in range(1, 5):
  log.write(step, "train", {"loss": 1.0})
  log.step(step)
log.close()
print("a last word")
"""


def test_a_closed_pipe_ends_no_run(root, tmp_path):
  child = subprocess.Popen(
    [sys.executable, "-c", PIPE, str(tmp_path)],
    env={**os.environ, "PYTHONPATH": str(root)},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert child.stdout.readline() == "ready\n"
  child.stdout.close()
  child.stdin.write("\n")
  child.stdin.close()
  assert (child.wait(60), child.stderr.read()) == (0, "")
  child.stderr.close()
  assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]


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

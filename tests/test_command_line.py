"""Verbs from the command line: one vocabulary for all, files of others, early ends."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys

import process_tools
import pytest

from prompt_tuning import eval as eval_verb
from prompt_tuning import export, infer, train
from prompt_tuning.engine import checkpoint, config
from prompt_tuning.interop import prompts

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


# ---- files of others

FOREIGN = [
  "my thesis\n",
  '{"accuracy": 0.5}\n',
  '{\n  "accuracy": 0.5\n}\n',
  '[{"loss"',
]


@pytest.mark.parametrize("content", FOREIGN)
def test_answers_never_replace_what_is_not_ours(
  content, work, tmp_path, capsys, monkeypatch
):
  def nothing(*args, **kwargs):
    pytest.fail("this should have been refused before weights were read")

  given = f"VOCABULARY='{work}/words.model'"
  for name in ("metrics-validation.json", "predictions-validation.jsonl"):
    path = tmp_path / name.partition(".")[0] / name
    path.parent.mkdir()
    path.write_text(content)
    with monkeypatch.context() as patch:
      patch.setattr(eval_verb.answer, "load", nothing)
      patch.setattr(infer, "load", nothing)
      assert name in refused(capsys, evaluate, work, path.parent, given)
      assert "this library wrote it" in refused(capsys, answers, work, path, given)
    assert path.read_text() == content
    assert list(path.parent.iterdir()) == [path]


def test_answers_of_before_are_replaced(work, tmp_path):
  given = f"VOCABULARY='{work}/words.model'"
  path = tmp_path / "answers.jsonl"
  path.touch()  # as mktemp does
  first = evaluate(work, tmp_path, given), answers(work, path, given)
  assert (evaluate(work, tmp_path, given), answers(work, path, given)) == first
  lines = (tmp_path / "predictions-validation.jsonl").read_text().splitlines()
  assert len(lines) == process_tools.VALIDATION
  assert len(path.read_text().splitlines()) == 2


def test_a_folder_that_cannot_be_written_is_said_at_once(work, tmp_path, capsys):
  (tmp_path / "file").touch()
  line = refused(capsys, evaluate, work, tmp_path / "file" / "eval")
  assert "`EVAL_DIR` is" in line and "cannot be written: Not a directory" in line


def test_a_path_from_home_is_written_out(work, capsys, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  line = refused(capsys, answers, work, "~/answers.jsonl")
  assert "`OUTPUT_FILE` is '~/answers.jsonl'" in line
  assert f"Give '{os.path.expanduser('~')}/answers.jsonl'" in line
  assert list(tmp_path.iterdir()) == []


def test_targets_to_compare_with_are_there(work, capsys, tmp_path):
  given = f"VOCABULARY='{work}/words.model'"
  line = refused(capsys, evaluate, work, tmp_path / "e", given, "TARGETS=None")
  assert "is empty" in line and "(`TARGETS` says which column)" in line
  assert not (tmp_path / "e").exists()


def test_an_export_never_goes_into_the_prompt_that_it_reads(work, tmp_path, capsys):
  prompt = shutil.copytree(work / "run" / "prompt", tmp_path / "prompt")
  flags = [f"--prompt={prompt}", f"--output={tmp_path}/../{tmp_path.name}/prompt/"]
  before = sorted(prompt.iterdir())
  for to in ("peft", "t5x", "stablehlo"):
    line = refused(capsys, export.main, [f"--to={to}", *flags])
    assert "the folder of the prompt that is read" in line
  assert sorted(prompt.iterdir()) == before
  # Whatever else comes to lie there, our own card is what is read.
  export.main(["--to=peft", flags[0], f"--output={tmp_path}/peft"])
  shutil.copy(tmp_path / "peft" / "adapter_config.json", prompt)
  assert prompts.load(prompt).card["task"]["labels"] == ["negative", "positive"]


def test_labels_to_answer_with_are_different(work, capsys, tmp_path):
  line = refused(capsys, answers, work, tmp_path / "x.jsonl", "LABELS=['a', 'a']")
  assert "'a' twice" in line


# ---- early ends


@pytest.mark.parametrize("name", ["train", "eval", "infer", "export", "precompile"])
def test_ctrl_c_while_a_verb_starts_is_a_line(name, root):
  # Interrupted by itself, as soon as something slow is imported.
  code = (
    "import os, runpy, signal, sys\n"
    "class Slow:\n"
    "  def find_spec(self, name, *rest):\n"
    "    if name == 'jax': os.kill(os.getpid(), signal.SIGINT)\n"
    "sys.meta_path.insert(0, Slow())\n"
    f"runpy.run_module('prompt_tuning.{name}', run_name='__main__')\n"
  )
  environment = {**os.environ, "PYTHONPATH": str(root)}
  done = subprocess.run(
    [sys.executable, "-c", code],
    env=environment,
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == 130
  (line,) = done.stderr.splitlines()
  assert line.startswith("Told to end")


def test_ctrl_c_leaves_no_half_of_an_export(tmp_path, capsys, monkeypatch):
  def interrupted(*args):
    os.kill(os.getpid(), signal.SIGINT)

  monkeypatch.setattr(export.huggingface.shards, "save", interrupted)
  flags = ["--to=huggingface", "--checkpoint=mini", f"--output={tmp_path}/model"]
  with pytest.raises(SystemExit) as stop:
    export.main(flags)
  assert stop.value.code == 130
  assert capsys.readouterr().out == "Told to end (SIGINT). Nothing was written.\n"
  assert list(tmp_path.iterdir()) == []


CLOSED = "import os; os.closerange(0, 3); os.execv({0!r}, [{0!r}, '-c', {1!r}])"


def test_closed_streams_are_opened_to_nowhere(root, tmp_path):
  code = (
    "from prompt_tuning.engine import early\n"
    "early.begin()\n"
    f"file = open({str(tmp_path / 'file')!r}, 'w')\n"
    "import os, sys\n"
    "print('lost'); print('lost', file=sys.stderr, flush=True)\n"
    "os.write(1, b'lost'); os.write(2, b'lost')\n"
    "file.write(f'{file.fileno() > 2} {sys.stdin.read()!r}')\n"
  )
  code = CLOSED.format(sys.executable, code)
  environment = {**os.environ, "PYTHONPATH": str(root)}
  subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
  assert (tmp_path / "file").read_text() == "True ''"


def test_a_program_told_to_end_is_not_taken_down_piece_by_piece(root):
  code = (
    "import atexit, os, signal, sys\n"
    "from prompt_tuning.engine import ended\n"
    "atexit.register(os.abort)  # as a thread of XLA does, now and then\n"
    "with ended.at_once(), ended.in_one_line():\n"
    "  os.kill(os.getpid(), signal.SIGTERM)\n"
  )
  environment = {**os.environ, "PYTHONPATH": str(root)}
  done = subprocess.run(
    [sys.executable, "-c", code],
    env=environment,
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == 128 + signal.SIGTERM
  assert done.stdout == "Told to end (SIGTERM). Nothing was written.\n"


def test_a_message_speaks_of_macros(work):
  files = ["gin/train.gin", f"{work}/task.gin", "gin/methods/prompt_tuning.gin"]
  config.parse(files, ["PROMPT_LENGTH = 2", "MODEL_DIR = 'x'"])
  said = {
    "`Files.label_map` has": "`LABEL_MAP` has",
    "set `Files.quoted` = True (QUOTED in gin).": "set `QUOTED` = True.",
    "`Files.train`, TRAIN_FILE in gin, says": "`TRAIN_FILE` says",
    "`Files.name_of_none` and `Beam.steps`": "`Files.name_of_none` and `Beam.steps`",
    "`labels` of `a.tsv`": "`labels` of `a.tsv`",
  }
  assert {text: config.in_macros(text) for text in said} == said


def test_a_save_that_fails_is_told_of_once(caplog, monkeypatch):
  shown = []
  monkeypatch.setattr(sys, "excepthook", lambda *error: shown.append(error[1]))
  logger = logging.getLogger("absl")
  monkeypatch.setattr(logger, "filters", list(logger.filters))
  checkpoint._quiet_failures()
  checkpoint._quiet_failures()
  closed, other = RuntimeError("Event loop is closed"), RuntimeError("another")
  for error in (closed, other):
    sys.excepthook(RuntimeError, error, None)
  assert shown == [other]
  failed = (OSError, OSError("No space left"), None)
  for place, info in (("orbax/a.py", failed), ("orbax/a.py", None), ("b.py", failed)):
    record = logger.makeRecord("absl", logging.ERROR, place, 1, "words", (), info)
    logger.handle(record)
  told = [(record.pathname, record.exc_info is None) for record in caplog.records]
  assert told == [("orbax/a.py", True), ("b.py", False)]

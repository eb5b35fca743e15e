"""How `infer` writes: streams, what a kill leaves, files of others."""

import json
import math
import os
import signal
import subprocess
import sys

import numpy as np
import process_tools
import pytest
from infer_tools import LINES

from prompt_tuning import answer, infer
from prompt_tuning.engine import ended, evaluate, partial


@pytest.fixture
def verb(tmp_path, tiny_folder, monkeypatch):
  """Runs `infer` on lines, 8 at once, with answers that say what was read."""
  (tmp_path / "in.txt").write_text("\n".join(LINES) + "\n")
  calls = []

  def predictor(*settings):
    def run(params, batch, numbers):
      calls.append(batch["inputs"].shape)
      sums = np.asarray(batch["inputs"]).sum(1)
      return [{"prediction": f"{n} {s}"} for n, s in zip(numbers, sums, strict=True)]

    return run

  monkeypatch.setattr(evaluate, "predictor", predictor)
  monkeypatch.setattr(infer, "BATCHES", 2)

  def run(output="out.jsonl", source="in.txt", **settings):
    calls.clear()
    return infer.infer(
      str(tmp_path / source),
      str(tmp_path / output),
      initial_checkpoint_path=tiny_folder,
      eval_batch_size=4,
      **settings,
    )

  run.calls = calls
  return run


@pytest.fixture
def whole(verb, tmp_path):
  """What an undisturbed run writes."""
  assert verb("whole.jsonl") == len(LINES)
  assert not list(tmp_path.glob(".*"))
  return (tmp_path / "whole.jsonl").read_text()


def test_lines_stream_in_small_parts(verb, whole, monkeypatch):
  found = [json.loads(line) for line in whole.splitlines()]
  assert [line["input"] for line in found] == LINES
  # What a sampled answer draws depends on the number of its input.
  assert [int(line["prediction"].split()[0]) for line in found] == list(range(50))
  assert max(rows for rows, _ in verb.calls) == 4
  held = []
  lines = infer.Run.lines

  def watched(self, asked, number):
    held.append(len(asked))
    return lines(self, asked, number)

  monkeypatch.setattr(infer.Run, "lines", watched)
  verb("again.jsonl")
  assert held == [8] * 6 + [2]
  held.clear()
  monkeypatch.setattr(infer, "CHARACTERS", 60)
  verb("again.jsonl")
  assert sum(held) == 50 and max(held) < 8


def told(monkeypatch, part, act):
  """Does something after so many parts were written."""
  add = partial.Partial.add

  def added(self, lines, digest):
    add(self, lines, digest)
    if self.done.lines >= part * 8:
      act()

  monkeypatch.setattr(partial.Partial, "add", added)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_same_command_goes_on(verb, whole, tmp_path, monkeypatch, capsys, number):
  before = signal.getsignal(number)
  with monkeypatch.context() as patch:
    told(patch, 3, lambda: os.kill(os.getpid(), number))
    with pytest.raises(SystemExit) as stop:
      verb()
  assert stop.value.code == 128 + number and signal.getsignal(number) is before
  (line,) = capsys.readouterr().out.splitlines()
  assert f"{number.name}). 24 answers are kept in" in line
  kept = tmp_path / ".out.jsonl.partial"
  assert len(kept.read_text().splitlines()) == 24
  assert not (tmp_path / "out.jsonl").exists()
  # A kill may leave lines that do not count yet, the last one torn.
  with kept.open("a") as file:
    file.write('{"input": "text"}\n{"inp')
  assert verb() == 50
  assert sum(rows for rows, _ in verb.calls) == 28, "the rest alone is answered"
  assert "(24 of them by an earlier job)" in capsys.readouterr().out
  assert (tmp_path / "out.jsonl").read_text() == whole
  assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("change", ["text", "settings", "shorter"])
def test_answers_of_other_inputs_are_not_kept(
  verb, whole, tmp_path, monkeypatch, change
):
  with monkeypatch.context() as patch:
    told(patch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
      verb()
  lines = {"text": ["other", *LINES[1:]], "shorter": LINES[:20]}.get(change, LINES)
  (tmp_path / "in.txt").write_text("\n".join(lines) + "\n")
  settings = {"labels": ["a", "b"]} if change == "settings" else {}
  assert verb(**settings) == len(lines)
  found = (tmp_path / "out.jsonl").read_text()
  assert len(found.splitlines()) == len(lines)
  assert json.loads(found.splitlines()[0])["input"] == lines[0]
  assert not list(tmp_path.glob(".*"))


def test_a_full_disk_and_a_bad_row_keep_what_is_done(
  verb, whole, tmp_path, monkeypatch, capsys
):
  def full():
    raise OSError(28, "No space left on device")

  with monkeypatch.context() as patch:
    told(patch, 2, full)
    with pytest.raises(OSError, match="No space left"):
      verb()
  assert "16 answers are kept in" in capsys.readouterr().out
  # A row further on that cannot be read.
  data = "\n".join(LINES).encode().splitlines()
  (tmp_path / "in.txt").write_bytes(b"\n".join([*data[:40], b"\xff", *data[41:]]))
  with pytest.raises(ValueError, match="in.txt line 41 is not UTF-8"):
    verb()
  assert "40 answers are kept in" in capsys.readouterr().out
  (tmp_path / "in.txt").write_bytes(b"\n".join(data))
  assert verb() == 50
  assert (tmp_path / "out.jsonl").read_text() == whole


def test_nothing_done_leaves_nothing(verb, tmp_path, monkeypatch):
  def failing(self, asked, number):
    raise ValueError("no answer")

  monkeypatch.setattr(infer.Run, "lines", failing)
  with pytest.raises(ValueError, match="no answer"):
    verb("new/out.jsonl")
  assert not list((tmp_path / "new").iterdir())


def test_files_of_others_are_left_alone(verb, tmp_path, monkeypatch):
  monkeypatch.setattr(answer, "load", lambda *_: pytest.fail("weights were loaded"))
  monkeypatch.setattr(infer, "load", lambda *_: pytest.fail("weights were loaded"))
  before = (tmp_path / "in.txt").read_bytes()
  (tmp_path / "link.txt").symlink_to(tmp_path / "in.txt")
  os.link(tmp_path / "in.txt", tmp_path / "hard.txt")
  for name in ("in.txt", "link.txt", "hard.txt", "../" + tmp_path.name + "/in.txt"):
    with pytest.raises(ValueError, match="`OUTPUT_FILE` is .*the same file as"):
      verb(name)
  (tmp_path / "folder").mkdir()
  with pytest.raises(ValueError, match="`OUTPUT_FILE` is .*which is a folder"):
    verb("folder")
  with pytest.raises(ValueError, match="`OUTPUT_FILE` is .*cannot be written"):
    verb("in.txt/out.jsonl")
  (tmp_path / "empty.txt").write_text("\n\n")
  with pytest.raises(ValueError, match="`INPUT_FILE` .* holds no inputs"):
    verb(source="empty.txt")
  assert (tmp_path / "in.txt").read_bytes() == before


def test_what_is_in_the_way_is_not_ours(verb, tmp_path):
  foreign = tmp_path / ".out.jsonl.partial"
  foreign.write_text("my notes\n")
  with pytest.raises(ValueError, match="is in the way of `OUTPUT_FILE`.*Move it"):
    verb()
  assert foreign.read_text() == "my notes\n"
  foreign.unlink()
  (tmp_path / ".out.jsonl.partial.json").write_text("[1]")
  with pytest.raises(ValueError, match="is in the way of `OUTPUT_FILE`.*Move it"):
    verb()
  assert not foreign.exists()


def test_two_jobs_do_not_write_one_file(verb, tmp_path):
  with partial.Partial("OUTPUT_FILE", str(tmp_path / "out.jsonl")) as held:
    with pytest.raises(ValueError, match="is being written by another job"):
      verb()
    assert held.kept.exists()


@pytest.mark.skipif(
  not os.environ.get("PROMPT_TUNING_THOROUGH"), reason="starts three programs"
)
def test_two_processes_answer_as_one(tmp_path, tiny_folder):
  (tmp_path / "in.txt").write_text("\n".join(LINES) + "\n")

  def start(output, *flags):
    given = {
      "INITIAL_CHECKPOINT_PATH": tiny_folder,
      "INPUT_FILE": f"{tmp_path}/in.txt",
      "OUTPUT_FILE": f"{tmp_path}/{output}",
    }
    command = [sys.executable, "-m", "prompt_tuning.infer", "--gin_file=gin/infer.gin"]
    command += [f"--gin.{name}='{value}'" for name, value in given.items()]
    command += ["--gin.LABELS=['good','bad']", "--gin.EVAL_BATCH_SIZE=2", *flags]
    environment = {**os.environ, "PYTHONPATH": str(process_tools.ROOT)}
    return subprocess.Popen(
      command, cwd=process_tools.ROOT, env=environment, stdout=subprocess.DEVNULL
    )

  address = f"--coordinator_address=localhost:{process_tools.free_port()}"
  join = [address, "--process_count=2"]
  two = [start("two.jsonl", *join, f"--process_index={i}") for i in range(2)]
  assert process_tools.codes([*two, start("one.jsonl")]) == [0, 0, 0]
  one, two = (
    [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
    for name in ("one.jsonl", "two.jsonl")
  )
  assert [line["input"] for line in two] == LINES
  for left, right in zip(one, two, strict=True):
    assert left["prediction"] == right["prediction"]
    assert left["scores"] == pytest.approx(right["scores"], abs=1e-5)
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    "in.txt",
    "one.jsonl",
    "two.jsonl",
  ]


def test_a_pipe_is_written_straight(verb, whole, tmp_path):
  os.mkfifo(tmp_path / "pipe")
  reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
  try:
    assert verb("pipe") == 50
    assert os.read(reader, 1 << 20).decode() == whole
  finally:
    os.close(reader)
  assert not list(tmp_path.glob(".*"))


def test_a_reader_that_left_ends_it_in_one_line(verb, tmp_path, capsys, monkeypatch):
  os.mkfifo(tmp_path / "pipe")
  reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
  told(monkeypatch, 1, lambda: os.close(reader))
  with pytest.raises(SystemExit) as stop:
    verb("pipe")
  assert stop.value.code == 128 + signal.SIGPIPE
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("The reader of `OUTPUT_FILE` left") and "/pipe'" in line


def test_a_screen_that_is_gone_is_no_failure():
  program = (
    "import sys; from prompt_tuning.engine import ended\n"
    "sys.stdin.read(1); ended.say('a line'); ended.say('another')"
  )
  with subprocess.Popen(
    [sys.executable, "-c", program],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  ) as run:
    run.stdout.close()
    run.stdin.write(b".")
    run.stdin.close()
    assert run.wait(60) == 0
    assert run.stderr.read() == b""


@pytest.mark.parametrize("number", ended.SIGNALS)
def test_an_end_in_one_line(number, capsys):
  before = signal.getsignal(number)
  with pytest.raises(SystemExit) as stop, ended.in_one_line():
    os.kill(os.getpid(), number)
    signal.pause()
  assert stop.value.code == 128 + number and signal.getsignal(number) is before
  assert (
    capsys.readouterr().out == f"Told to end ({number.name}). Nothing was written.\n"
  )


def test_json_holds_finite_numbers_alone(tmp_path):
  record = {"scores": {"a": math.nan, "b": -math.inf, "c": 1.5}, "list": [math.inf, 2]}
  line = answer.json_line(record)
  assert line == '{"scores": {"a": null, "b": null, "c": 1.5}, "list": [null, 2]}'
  answer.write_lines(tmp_path / "x.jsonl", [record])
  assert (tmp_path / "x.jsonl").read_text() == line + "\n"


@pytest.mark.parametrize("value", [0, -1, 2.5, "all", True])
@pytest.mark.parametrize("name", ["MOST_POSITIONS", "EVAL_BATCH_SIZE"])
def test_numbers_must_be_numbers(tmp_path, tiny_folder, name, value):
  with pytest.raises(ValueError, match=f"`{name}` must be a whole number from 1 on"):
    infer.infer("in.txt", "out.txt", None, tiny_folder, **{name.lower(): value})

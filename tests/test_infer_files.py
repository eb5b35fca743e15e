"""How `infer` reads and writes: streams, bounds, and what a kill leaves."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys

import numpy as np
import process_tools
import pytest

import prompt_tuning as pt
from prompt_tuning import answer, infer
from prompt_tuning.data import reading
from prompt_tuning.data.features import Layout
from prompt_tuning.data.fewshot import FewShot
from prompt_tuning.data.files import Files
from prompt_tuning.data.lists import Lists
from prompt_tuning.data.reading import Reading
from prompt_tuning.engine import conventions, ended, evaluate, partial, rows
from prompt_tuning.outputs.choice import Choice
from prompt_tuning.outputs.text import Beam, Greedy, Sample

# ---- the card


@dataclasses.dataclass(frozen=True)
class Own(Greedy):
  """A setting of the user's own code."""


@pytest.mark.parametrize(
  "output", [None, Choice(True, 3), Greedy(7), Sample(4, 0.5, 3, 0.9, 2), Beam(5, 2)]
)
def test_a_card_says_how_answers_are_made(output):
  task = Lists(train=[("a", "b")])
  card = json.loads(json.dumps(conventions.said(task, output)))
  assert conventions.of(card).output == output
  assert card["reading"] is None


def test_a_card_says_how_files_are_read():
  task = Files("t.tsv", inputs="{a} or {b}", targets="{c}", label_map={"0": "no"})
  wrapped = FewShot(task, 2)
  card = json.loads(json.dumps(conventions.said(wrapped, Own(3))))
  assert card["output"] is None
  found = conventions.of(card).reading
  assert found == Reading("{a} or {b}", "{c}", "label", {"0": "no"})
  assert found.columns == ("a", "b")
  assert conventions.differences(conventions.of(card), task) == []
  other = dataclasses.replace(task, inputs="{a}", labels=("no", "yes"))
  known = conventions.of({**card, "task": {"labels": ["yes", "no"]}})
  inputs, labels = conventions.differences(known, other)
  assert "'{a}' (trained with '{a} or {b}')" in inputs and "['yes', 'no']" in labels


@pytest.mark.parametrize(
  ("damage", "key"),
  [
    ({"layout": [1]}, "layout"),
    ({"layout": {"truncate": "yes"}}, "layout.truncate"),
    ({"layout": {"inputs": True}}, "layout.inputs"),
    ({"layout": {"targets": 0}}, "layout.targets"),
    ({"layout": {"place": ["front"]}}, "layout.place"),
    ({"task": {"labels": "ab"}}, "task.labels"),
    ({"task": {"labels": ["a", 1]}}, "task.labels"),
    ({"reading": "{text}"}, "reading"),
    ({"reading": {}}, "reading.inputs"),
    ({"reading": {"inputs": 5}}, "reading.inputs"),
    ({"reading": {"inputs": "no column"}}, "reading.inputs"),
    ({"reading": {"inputs": "{"}}, "reading.inputs"),
    ({"reading": {"inputs": "{a}", "label_map": {"0": 1}}}, "reading.label_map"),
    ({"reading": {"inputs": "{a}", "class": "os:system"}}, "reading.class"),
    ({"output": {"steps": 3}}, "output.kind"),
    ({"output": {"kind": ["greedy"], "steps": 3}}, "output.kind"),
    ({"output": {"kind": "prompt_tuning.data.files:Files"}}, "output.kind"),
    ({"output": {"kind": "greedy"}}, "output.steps"),
    ({"output": {"kind": "greedy", "steps": 1.5}}, "output.steps"),
    ({"output": {"kind": "greedy", "steps": 0}}, "output"),
    ({"output": {"kind": "sample", "steps": 1, "top_p": math.nan}}, "output.top_p"),
    ({"output": {"kind": "choice", "normalize_by_length": 1}}, "output.normalize_by"),
  ],
)
def test_a_damaged_card_is_refused(damage, key):
  with pytest.raises(conventions.CardError, match=f"card.json: `{key}"):
    conventions.of(damage)


# ---- reading


def read(path, *settings):
  return [(one.id, one.text) for one in reading.asked(str(path), *settings)]


def test_tables_are_read_by_columns(tmp_path):
  table = tmp_path / "rows.tsv"
  table.write_text("label\ttext\tn\nbad\ta film\t1\n\tdull\t2\n")
  assert read(table, None, "n") == [("1", "a film"), ("2", "dull")]
  assert read(table, Reading("{n}: {text}")) == [(None, "1: a film"), (None, "2: dull")]
  with pytest.raises(ValueError, match=r"line 2: `INPUTS` .* 'question'.*'label', 'te"):
    read(table, Reading("{question}"))
  with pytest.raises(ValueError, match="line 2: `ID_COLUMN` asks for the column 'id'"):
    read(table, None, "id")
  one = tmp_path / "one.csv"
  one.write_text('sentence\n"so, it ""was"""\n')
  assert read(one, None) == [(None, 'so, it "was"')]
  two = tmp_path / "two.jsonl"
  two.write_text('{"text": "a", "inputs": "b"}\n')
  with pytest.raises(ValueError, match=r"which column is the input.*'text', 'inputs'"):
    read(two, None)
  two.write_text('{"text": "a <prompt> b"}\n')
  # A whole input may say where the prompt stands, once.
  assert read(two, Reading("{text}")) == [(None, "a <prompt> b")]
  for template, text in (("{text}", "<prompt> a <prompt>"), ("say {text}", "<prompt>")):
    two.write_text(json.dumps({"text": text}) + "\n")
    with pytest.raises(ValueError, match="line 1: a text holds <prompt>"):
      read(two, Reading(template))


def test_lines_are_the_one_column(tmp_path):
  lines = tmp_path / "in.txt"
  lines.write_text("a film\n\n{dull}\n\n")
  assert read(lines, Reading("say {text}: {text}")) == [
    (None, f"say {text}: {text}") for text in ("a film", "", "{dull}")
  ]
  with pytest.raises(ValueError, match=r"line 1 is one text.*\['a', 'b'\].*TSV"):
    read(lines, Reading("{a} {b}"))
  with pytest.raises(ValueError, match="`ID_COLUMN` is 'n'.*plain lines"):
    read(lines, None, "n")


@pytest.mark.parametrize(
  ("texts", "words"),
  [
    ("a film", "`texts` is 'a film'; it must be a list"),
    ([{"text": "x"}, {"other": "x"}], r"`texts\[1\]`: `INPUTS` asks for the column"),
    (["x", 5], r"`texts\[1\]` is 5; it must be a text"),
  ],
)
def test_texts_from_python(texts, words):
  with pytest.raises(ValueError, match=words):
    reading.texts(texts, Reading("{text}"))


# ---- batches by length


def plan(lengths, size, usual, multiple=1):
  examples = [{"inputs": [1] * n, "targets": [1]} for n in lengths]
  layout = Layout(max(lengths), 1, 2)
  most = None if usual is None else size * usual**2
  return examples, rows.plan(examples, layout, size, most, multiple)


def test_long_rows_come_in_small_batches():
  lengths = [3, 4000, 20, 7, 900, 5, 30, 9]
  examples, found = plan(lengths, 4, 512)
  for one in found:
    longest = max(len(examples[i]["inputs"]) for i in one.numbers)
    assert longest <= one.layout.inputs and len(one.numbers) <= one.size
    assert one.size == 1 or one.size * one.layout.lengths["inputs"] ** 2 <= 4 * 512**2
  assert sorted(i for one in found for i in one.numbers) == list(range(8))
  assert [one.size for one in found] == [4, 2, 1, 1]
  # Rows are shared by devices: so many at the least.
  assert {one.size for one in plan(lengths, 4, 512, 2)[1]} == {2, 4}
  with pytest.raises(ValueError, match="`EVAL_BATCH_SIZE` must be at least 1, got 0"):
    plan(lengths, 0, None)
  # As training asked for it: every batch has its rows, in the order of the examples.
  _, found = plan(lengths, 4, None)
  assert [list(one.numbers) for one in found] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_long_text_is_cut_where_the_prompt_was_trained_so(tiny_folder, caplog):
  loaded = pt.load_model(tiny_folder).loaded
  session = answer.session(loaded, None)
  examples = [{"inputs": [5] * n, "targets": [1] * 3} for n in (7, 50, 20)]
  assert session.layout(examples).inputs == 64 and not caplog.text
  known = conventions.Conventions(truncate=True, inputs=10, targets=2)
  session = dataclasses.replace(session, known=known)
  layout = session.layout(examples, targets=True, cut_targets=True)
  assert (layout.inputs, layout.targets) == (10, 2)
  assert "2 of 3 inputs were cut to 10 tokens (as in training)" in caplog.text
  assert session.layout(examples, targets=True).targets == 3
  caplog.clear()
  long = dataclasses.replace(session, known=conventions.Conventions(inputs=30))
  assert dataclasses.replace(long, most_positions=8).layout(examples).inputs == 30
  assert "1 of 3 inputs were cut to 30 tokens (MOST_POSITIONS" in caplog.text
  assert dataclasses.replace(long, most_positions=None).limit is None


# ---- writing

LINES = [f"text number {i} {'and so on ' * (i % 7)}".strip() for i in range(50)]


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

"""How `infer` reads: cards, tables, lines, long texts."""

import dataclasses
import json
import math

import pytest

import prompt_tuning as pt
from prompt_tuning import answer
from prompt_tuning.data import reading
from prompt_tuning.data.features import Layout
from prompt_tuning.data.fewshot import FewShot
from prompt_tuning.data.files import Files
from prompt_tuning.data.lists import Lists
from prompt_tuning.data.reading import Reading
from prompt_tuning.engine import conventions, rows
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

"""What becomes of a run whose files are damaged."""

import json
import sys

import pytest
from run_tools import content

from prompt_tuning.engine import (
  log,
  records,
)

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

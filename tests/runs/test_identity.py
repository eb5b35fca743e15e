"""What a run hangs on, and what may change while it goes on."""

import re
import shutil

import numpy as np
import pytest
from run_tools import content

from prompt_tuning.data import vocabularies
from prompt_tuning.data.lists import Lists
from prompt_tuning.engine import (
  distributed,
  identity,
  model_dir,
)

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

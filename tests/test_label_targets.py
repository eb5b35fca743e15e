"""Targets as numbers, several labels in one text, and scores of such answers."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from prompt_tuning.core.labels import joined, parts
from prompt_tuning.data import label_metrics, targets
from prompt_tuning.data.features import Layout
from prompt_tuning.data.fewshot import FewShot
from prompt_tuning.data.files import Files
from prompt_tuning.data.lists import Lists
from prompt_tuning.data.packing import pack

NAMES = ("film", "food", "music")


def lists(*found, **more):
  return Lists(train=[("a text", text) for text in found], metrics=(), **more)


def values(task, vocabulary=None):
  number = targets.numbered(task)
  found = [{"targets_pretokenized": text.encode()} for text in task_targets(task)]
  return [number(one)["labels"] for one in found]


def task_targets(task):
  return [example["targets"] for example in task.examples("train")]


def test_what_targets_are_follows_from_the_task():
  assert targets.kind(lists("film", labels=NAMES)) == "label"
  assert targets.kind(lists("film", labels=NAMES, separator="|")) == "labels"
  assert targets.kind(lists("1.5")) == "number"


def test_targets_become_numbers():
  (label,) = values(lists("food", labels=NAMES))
  assert label.dtype == np.int32 and label.shape == () and label == 1
  several = values(lists("music|film", "none", " food ", labels=NAMES, separator="|"))
  np.testing.assert_array_equal(several, [[1, 0, 1], [0, 0, 0], [0, 1, 0]])
  assert several[0].dtype == np.float32
  number, small = values(lists("3.5", "-1e-3"))
  assert number.dtype == np.float32 and number == 3.5
  assert small == np.float32(-1e-3)


def test_several_labels_stand_in_the_order_of_all():
  assert parts("b | a", "|") == ["b", "a"] and parts("none", "|") == []
  assert joined({"music", "film"}, NAMES, ", ") == "film, music"
  task = lists("music|film", "none", "food", labels=NAMES, separator="|")
  assert task_targets(task) == ["film|music", "none", "food"]
  assert task.separator == "|"


def test_files_and_shots_of_several_labels(tmp_path):
  lines = ["text\tlabel", *(f"text {i}\t{'b;a' if i % 2 else 'a'}" for i in range(8))]
  (tmp_path / "train.tsv").write_text("\n".join(lines) + "\n")
  known = {"directory": str(tmp_path), "labels": ["a", "b"], "separator": ";"}
  task = Files(train="train.tsv", metrics=("f1_labels",), **known)
  assert task_targets(task)[:2] == ["a", "a;b"]
  few = FewShot(task, shots=2)
  assert few.separator == ";"
  assert sorted(task_targets(few)) == ["a", "a", "a;b", "a;b"]
  assert few.score(["a"] * 4, "train")["f1_micro"] < 100
  own = Files(train="train.tsv", shots=1, metrics=(), **known)
  assert sorted(task_targets(own)) == ["a", "a;b"]


@pytest.mark.parametrize(
  ("make", "words"),
  [
    (lambda: lists("a|c", labels=["a", "b"], separator="|"), ["'c'", "Lists.labels"]),
    (lambda: lists("a", separator="|"), ["LABEL_SEPARATOR", "no labels"]),
    (lambda: lists("a-b", labels=["a-b", "c"], separator="-"), ["'a-b'", "holds it"]),
    (lambda: values(lists("tall")), ["'tall'", "no number", "LABELS"]),
    (lambda: values(lists("nan")), ["'nan'", "no number"]),
    (
      lambda: Lists(
        train=[("x", "a")], labels=["a", "b"], separator="|", metrics=["f1_macro"]
      ),
      ["f1_macro", "f1_labels"],
    ),
    (
      lambda: Lists(train=[("x", "a")], labels=["a", "b"], metrics=["f1_labels"]),
      ["f1_labels", "LABEL_SEPARATOR"],
    ),
  ],
)
def test_what_does_not_fit_is_refused(make, words):
  with pytest.raises(ValueError) as error:
    make()
  assert all(word in str(error.value) for word in words), error.value


def test_scores_are_those_of_scikit_learn():
  rng = np.random.default_rng(3)
  held = rng.random((2, 40, 3)) < 0.4
  held[:, :, 2] &= rng.random((2, 40)) < 0.2
  asked, said = ([joined(named(row), NAMES, "|") for row in one] for one in held)
  found = label_metrics.f1_labels(asked, said, NAMES, "|")
  for average in ("micro", "macro"):
    wanted = 100 * f1_score(held[0], held[1], average=average, zero_division=0)
    np.testing.assert_allclose(found[f"f1_{average}"], wanted, rtol=1e-12)
  assert label_metrics.f1_labels(["none"], ["none"], NAMES, "|")["f1_micro"] == 0
  task = Lists(
    train=[("x", text) for text in asked],
    labels=NAMES,
    separator="|",
    metrics=("accuracy", "f1_labels"),
  )
  scores = task.score(said, "train")
  same = np.mean([a == b for a, b in zip(asked, said, strict=True)])
  np.testing.assert_allclose(scores["accuracy"], 100 * same)
  assert scores["f1_macro"] == found["f1_macro"]


def named(row):
  return {name for name, holds in zip(NAMES, row, strict=True) if holds}


def test_packed_rows_keep_the_labels_of_each_example():
  layout = Layout(6, 3, 2)
  rows = [
    {"inputs": [5, 1], "targets": [7, 1], "labels": np.float32([i, 1])}
    for i in range(3)
  ]
  packed = list(pack(map(layout.convert, rows), 9, 6, 3))
  assert [row["labels"].shape for row in packed] == [(3, 2), (3, 2)]
  np.testing.assert_array_equal(packed[0]["labels"], [[0, 1], [1, 1], [0, 0]])
  np.testing.assert_array_equal(packed[1]["labels"], [[2, 1], [0, 0], [0, 0]])

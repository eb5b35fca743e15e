"""The contract of a task: texts, tokens, order, epochs and scores."""

import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from prompt_tuning.data import lists, task

ROOT = pathlib.Path(__file__).parents[1]
PAIRS = [(f"the film number {i} was good", "positive") for i in range(7)]


@pytest.fixture(scope="module")
def vocabulary():
  seqio = pytest.importorskip("seqio")
  path = ROOT / "prompt_tuning/demo/mini/spiece.model"
  return seqio.SentencePieceVocabulary(str(path), extra_ids=100)


def made(**fields):
  return lists.Lists(**{"train": PAIRS, **fields})


def texts(dataset, count=None):
  dataset = dataset if count is None else dataset.take(count)
  return [e["inputs_pretokenized"].decode() for e in dataset.as_numpy_iterator()]


def test_importing_the_room_does_not_import_tensorflow():
  names = "task files glue fewshot mixtures registered metrics lists"
  code = (
    f"from prompt_tuning.data import {', '.join(names.split())}; import sys;"
    "assert not {'tensorflow', 'seqio', 'sklearn', 'jax'} & set(sys.modules)"
  )
  subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_dataset_tokenises_and_ends_each_text(vocabulary):
  text, target = "the film was good", "positive"
  (example,) = (
    made(train=[(text, target)]).dataset(vocabulary, "train").as_numpy_iterator()
  )
  assert example["inputs"].dtype == example["targets"].dtype == np.int32
  assert example["inputs"].tolist() == [*vocabulary.encode(text), vocabulary.eos_id]
  assert example["targets"].tolist() == [*vocabulary.encode(target), vocabulary.eos_id]
  assert example["inputs_pretokenized"].decode() == text
  assert example["targets_pretokenized"].decode() == target
  assert example["mark"] == -1


@pytest.mark.parametrize(
  ("text", "before", "after"),
  [
    ("the film <prompt> was good", "the film", "was good"),
    ("<prompt> the film", "", "the film"),
    ("the film<prompt>", "the film", ""),
  ],
)
def test_mark_says_where_the_prompt_stands_and_leaves_the_text(
  vocabulary, text, before, after
):
  (example,) = (
    made(train=[(text, "x")]).dataset(vocabulary, "train").as_numpy_iterator()
  )
  ids = vocabulary.encode(f"{before} {after}".strip())
  assert example["inputs"].tolist() == [*ids, vocabulary.eos_id]
  assert example["mark"] == len(vocabulary.encode(before))


TEXTS = [
  ("a  film\t<prompt>\u2003that \u00e9<prompt", "x"),
  ("<prompt>", "x y"),
  ("  two  spaces  ", " x "),
  ("", "x"),
  ("<extra_id_0> \U0001f600 \u4e2d", "<extra_id_1>"),
]


def assert_same_rows(left, right):
  assert len(left) == len(right)
  for a, b in zip(left, right, strict=True):
    assert set(a) == set(b)
    for key in a:
      assert np.asarray(a[key]).dtype == np.asarray(b[key]).dtype
      np.testing.assert_array_equal(a[key], b[key], err_msg=key)


@pytest.mark.parametrize("kind", ["sentencepiece", "bytes"])
def test_tokens_are_what_the_dataset_yields(vocabulary, kind):
  import seqio

  vocabulary = vocabulary if kind == "sentencepiece" else seqio.ByteVocabulary(125)
  own = made(train=TEXTS)
  yielded = list(own.dataset(vocabulary, "train").as_numpy_iterator())
  assert_same_rows(own.tokens(vocabulary, "train"), yielded)
  assert_same_rows(own.tokens(vocabulary, "train", first=2), yielded[:2])


def test_unshuffled_keeps_the_order_over_epochs(vocabulary):
  inputs = [pair[0] for pair in PAIRS]
  assert texts(made().dataset(vocabulary, "train", epochs=2)) == inputs * 2


def test_shuffling_is_seeded_and_goes_by_whole_epochs():
  tf = pytest.importorskip("tensorflow")

  def read(seed, epochs):
    data = task.in_epochs(tf.data.Dataset.range(7), 7, True, seed, epochs)
    first = list(data.take(21).as_numpy_iterator())
    again = list(data.take(21).as_numpy_iterator())
    assert again == first, "reading again must give the same order"
    return first

  three = read(seed=1, epochs=3)
  epochs = [three[:7], three[7:14], three[14:]]
  assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
  assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != list(range(7))
  assert read(seed=1, epochs=None) == three
  assert read(seed=1, epochs=1) == epochs[0]
  assert read(seed=2, epochs=3) != three


def test_a_shuffled_dataset_is_whole(vocabulary):
  data = made().dataset(vocabulary, "train", shuffle=True, seed=1, epochs=2)
  assert int(data.cardinality()) == 14
  inputs, found = [pair[0] for pair in PAIRS], texts(data)
  assert sorted(found[:7]) == sorted(found[7:]) == inputs and found[:7] != inputs


def test_build_gives_a_seqio_task_outside_the_registry(vocabulary):
  import seqio

  before = set(seqio.TaskRegistry.names())
  built = made(name="pairs", metrics=("accuracy", "multirc")).build(vocabulary)
  assert set(seqio.TaskRegistry.names()) == before
  assert (built.name, tuple(built.splits)) == ("pairs", ("train",))
  assert len(built.metric_fns) == 1, "multirc needs more than texts"
  assert built.metric_fns[0](["a"], ["a"]) == {"accuracy": 100.0}
  lengths = {"inputs": 4, "targets": 4}
  cut = built.get_dataset(lengths, "train", shuffle=False)
  (first, *rest) = cut.as_numpy_iterator()
  assert len(first["inputs"]) == 4 and len(rest) == 6


def test_bad_use_is_refused(vocabulary):
  with pytest.raises(ValueError, match="no split 'test'.*'train'"):
    made().dataset(vocabulary, "test")
  with pytest.raises(ValueError, match="`epochs` must be at least 1.*got 0"):
    made().dataset(vocabulary, "train", epochs=0)
  with pytest.raises(ValueError, match="name.*'my task'"):
    made(name="my task")
  with pytest.raises(ValueError, match="labels.*different.*'a', 'a'"):
    made(labels=("a", "a"))
  with pytest.raises(ValueError, match="labels"):
    made(labels="positive")
  with pytest.raises(ValueError, match="Did you mean 'accuracy'"):
    made(metrics=("accuracie",))


def test_lists_are_checked():
  with pytest.raises(ValueError, match="no examples"):
    lists.Lists()
  with pytest.raises(ValueError, match=r"train\[1\].*\(input text, target text\)"):
    made(train=[("a", "b"), "ab"])
  with pytest.raises(ValueError, match=r"train\[0\].*empty target"):
    made(train=[("a", " ")])
  with pytest.raises(ValueError, match=r"train\[0\].*more than once"):
    made(train=[(f"{task.MARK} a {task.MARK}", "b")])
  with pytest.raises(ValueError, match=r"validation\[0\].*'bad'.*positive"):
    made(validation=[("a", "bad")], labels=("positive", "negative"))


def test_labels_are_spelled_as_files_spell_them():
  pairs = [("a", "0"), ("b", "1")]
  for labels in ([0, 1], np.array([0, 1]), np.array(["0", "1"]), ("0", "1")):
    assert made(train=pairs, labels=labels).labels == ("0", "1")
  assert made(train=[("a", "True")], labels=[False, True]).labels == ("False", "True")
  for labels in ([0.5, 1.0], [None, "a"], ["a", " "], [0, "0"], ["a", "b\ud83d"]):
    with pytest.raises(ValueError, match="Lists.labels"):
      made(train=pairs, labels=labels)
  for labels in ({"a", "b"}, (x for x in "ab"), 5, {"a": 1, "b": 2}):
    with pytest.raises(ValueError, match="Lists.labels.*two or more different"):
      made(train=pairs, labels=labels)
  with pytest.raises(ValueError, match="Lists.metrics.*must be a list"):
    made(metrics=5)
  with pytest.raises(ValueError, match="`metrics` names 5"):
    made(metrics=[5])


class Column:
  """As a column of a data frame, or a frame: an array in all but name."""

  def __init__(self, values, ndim=1):
    self.values, self.ndim = values, ndim

  def __array__(self, dtype=None, copy=None):
    column = np.empty(len(self.values), object)
    column[:] = self.values
    return column if self.ndim == 1 else np.array(self.values, object)


@pytest.mark.parametrize(
  "pairs",
  [
    (("a", "b"), ("c", "d")),
    np.array([["a", "b"], ["c", "d"]]),
    np.array([["a", "b"], ["c", "d"]], object),
    [np.array(["a", "b"]), ["c", "d"]],
    Column([("a", "b"), ("c", "d")]),
    Column([("a", "b"), ("c", "d")], ndim=2),
  ],
)
def test_what_counts_as_a_list_of_pairs(pairs):
  task_of_pairs = lists.Lists(train=pairs)
  assert task_of_pairs.train == [("a", "b"), ("c", "d")]
  texts = [text for pair in task_of_pairs.train for text in pair]
  assert {type(text) for text in texts} == {str}


@pytest.mark.parametrize(
  ("pairs", "words"),
  [
    ("ab", "list of pairs.*'ab'.*no list of its letters"),
    ({"a": "b"}, r"list of pairs.*\{'a': 'b'\}.*list\(\.\.\.\)"),
    (zip("a", "b", strict=True), r"list of pairs.*zip object.*list\(\.\.\.\)"),
    (7, "list of pairs of texts, got 7"),
    (["ab"], r"train\[0\].*input text, target text.*'ab'"),
    (Column([("a", "b", "c")], ndim=2), r"train\[0\].*input text, target text"),
    (Column(["ab", "cd"]), r"train\[0\].*input text, target text"),
    ([("a", 1)], r"train\[0\].*1 is no text"),
    ([("a", None)], r"train\[0\].*None is no text"),
    ([("a", "b"), ("a", "b", "c")], r"train\[1\].*input text, target text"),
    ([{"a": 1, "b": 2}], r"train\[0\].*input text, target text"),
    (np.array(["ab", "cd"]), r"train\[0\].*input text, target text"),
    ([("a\ud83d", "b")], r"train\[0\].*surrogate.*position 2"),
    ([("a", "b"), ("a", "\0")], r"train\[1\].*NUL"),
  ],
)
def test_what_does_not(pairs, words):
  with pytest.raises(ValueError, match=f"Lists.{words}|Lists.train.*{words}"):
    lists.Lists(train=pairs)


def test_many_labels_take_no_longer_than_reading_them():
  labels = [f"label {i}" for i in range(50_000)]
  start = time.monotonic()
  many = lists.Lists(train=[("a", label) for label in labels], labels=labels)
  assert time.monotonic() - start < 5
  with pytest.raises(ValueError, match=r"train\[0\].*'x'.*'\.\.\.'") as error:
    lists.Lists(train=[("a", "x")], labels=many.labels)
  assert len(str(error.value)) < 500


def test_score_compares_with_a_split():
  own = made(metrics=("accuracy",))
  assert own.score(["positive"] * 6 + ["x"], "train")["accuracy"] == pytest.approx(
    100 * 6 / 7
  )
  assert own.score(["positive", "x"], "train", numbers=range(2)) == {"accuracy": 50.0}
  with pytest.raises(ValueError, match="7 targets.*got 2"):
    own.score(["positive", "x"], "train")


def test_examples_are_read_once():
  own = made()
  assert own.examples("train")[0] is own.examples("train")[0]
  own.examples("train").clear()
  assert len(own.examples("train")) == 7

"""Vectors beside texts: columns, arrays on disk, and the rows that they belong to."""

import numpy as np
import pytest

from prompt_tuning.data import given, lists, mixtures, vectors
from prompt_tuning.data.fewshot import FewShot
from prompt_tuning.data.files import Files
from prompt_tuning.engine import identity

VECTORS = np.arange(12, dtype=np.float32).reshape(6, 2)


class Words:
  """A vocabulary of letters."""

  eos_id = 1

  def encode(self, text):
    return [ord(letter) for letter in text]


@pytest.fixture
def folder(tmp_path):
  rows = [f"text {i}\t{'ab'[i % 2]}\t{list(VECTORS[i])}\t{i % 3}" for i in range(6)]
  head = "text\tlabel\tvector\towner"
  text = "\n".join([head, *rows]).replace("np.float32(", "").replace(")", "")
  (tmp_path / "train.tsv").write_text(text + "\n")
  np.save(tmp_path / "train.npy", VECTORS)
  return tmp_path


def task(folder, **fields):
  return Files("train.tsv", directory=str(folder), **fields)


def brought(examples, name="external"):
  return np.stack([example[name] for example in examples])


@pytest.mark.parametrize(
  "fields", [{"external_column": "vector"}, {"external_file": "{split}.npy"}]
)
def test_each_row_brings_its_own_vector(folder, fields):
  whole = task(folder, **fields)
  np.testing.assert_array_equal(brought(whole.examples("train")), VECTORS)
  np.testing.assert_array_equal(brought(whole.tokens(Words(), "train")), VECTORS)
  # Rows that are left out take their vectors with them.
  some = task(folder, rows={"label": "b"}, **fields)
  np.testing.assert_array_equal(brought(some.examples("train")), VECTORS[1::2])
  few = FewShot(whole, 1, 3)
  for example in few.examples("train"):
    number = int(example["inputs"].split()[1])
    np.testing.assert_array_equal(example["external"], VECTORS[number])


def test_an_array_stays_on_disk(folder):
  held = vectors.opened(str(folder / "train.npy"), "EXTERNAL_FILE")
  assert isinstance(held.array, np.memmap)
  assert np.shares_memory(held.row(3), held.array)
  np.save(folder / "half.npy", VECTORS.astype(np.float16))
  half = vectors.opened(str(folder / "half.npy"), "EXTERNAL_FILE").row(3)
  assert half.dtype == np.float32
  np.testing.assert_array_equal(half, VECTORS[3])


def test_tensorflow_carries_them_too(folder, vocabulary_file):
  seqio = pytest.importorskip("seqio")
  vocabulary = seqio.SentencePieceVocabulary(vocabulary_file, extra_ids=100)
  own = task(folder, external_column="vector", task_column="owner")
  rows = list(own.dataset(vocabulary, "train").as_numpy_iterator())
  np.testing.assert_array_equal(brought(rows), VECTORS)
  assert [int(row["task"]) for row in rows] == [0, 1, 2, 0, 1, 2]
  other = lists.Lists([("a", "b")], name="other")
  both = mixtures.Mixture([own, other], "equal")
  data = both.dataset(vocabulary, "train", shuffle=True, epochs=None).take(20)
  rows = list(data.as_numpy_iterator())
  assert {int(row["task"]) for row in rows} == {0, 1}
  # Not all bring vectors, so none does.
  assert all("external" not in row for row in rows)
  assert all("external" not in row for row in both.tokens(vocabulary, "train"))


def test_a_column_says_whose_a_row_is(folder):
  own = task(folder, task_column="owner")
  assert [example["task"] for example in own.examples("train")] == [0, 1, 2, 0, 1, 2]
  with pytest.raises(ValueError, match="line 2: the column 'label' .* holds 'a'; it "):
    task(folder, task_column="label").examples("train")


def test_a_run_hangs_on_its_vectors(folder):
  first = identity.data(task(folder, external_file="train.npy"), Words(), "train")
  again = identity.data(task(folder, external_file="train.npy"), Words(), "train")
  np.save(folder / "train.npy", VECTORS + 1)
  other = identity.data(task(folder, external_file="train.npy"), Words(), "train")
  assert first == again != other


@pytest.mark.parametrize(
  ("value", "wanted"),
  [("[1, -2.5, 1e-3]", [1, -2.5, 1e-3]), (["1", "2.5"], [1, 2.5]), ("[0]", [0])],
)
def test_lists_of_numbers(value, wanted):
  found = vectors.parsed(value, "here", "EXTERNAL_COLUMN")
  assert found.dtype == np.float32
  np.testing.assert_array_equal(found, np.float32(wanted))


@pytest.mark.parametrize(
  "value",
  ["", "1 2", "{}", "[", "[]", "[[1]]", "[true]", "[NaN]", "[1e99]", ["x"], {"a": 1}]
  + ["[null]", '["a"]', "5"],
)
def test_what_is_no_list_of_numbers(value):
  with pytest.raises(ValueError, match="^here of `EXTERNAL_COLUMN` holds .*finite num"):
    vectors.parsed(value, "here", "EXTERNAL_COLUMN")


@pytest.mark.parametrize(
  ("array", "words"),
  [
    (np.zeros(3), r"holds float64 \[3\]"),
    (np.zeros((3, 0)), r"holds float64 \[3, 0\]"),
    (np.array([["a"]]), "holds <U1"),
    (np.zeros((3, 2), complex), "holds complex128"),
    (np.array([[None]], object), "cannot be read: Array can.t be memory-mapped"),
  ],
)
def test_what_is_no_array_of_vectors(tmp_path, array, words):
  np.save(tmp_path / "x.npy", array, allow_pickle=True)
  with pytest.raises(ValueError, match=f"`EXTERNAL_FILE` is .*{words}"):
    vectors.opened(str(tmp_path / "x.npy"), "EXTERNAL_FILE")


def test_several_arrays_are_no_array(tmp_path):
  np.savez(tmp_path / "x.npz", a=np.zeros((1, 1)))
  with pytest.raises(ValueError, match="holds several arrays; it must hold numbers"):
    vectors.opened(str(tmp_path / "x.npz"), "EXTERNAL_FILE")


def test_a_stream_is_checked_as_it_is_read():
  rows = [{"task": 0}, {"task": 5}]
  wanted = given.Wants(tasks=2)
  stream = given.checked(lambda: iter(rows), wanted, "train")()
  assert next(stream) == rows[0]
  with pytest.raises(ValueError, match="example 1 of the split 'train' belongs to tas"):
    next(stream)
  with pytest.raises(ValueError, match="belongs to task 5"):
    given.checked(rows, wanted, "train")
  assert given.checked(rows, given.Wants(), "train") is rows

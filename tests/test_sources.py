"""Where examples come from: frames, datasets and files, by their columns."""

import numpy as np
import pytest
from source_tools import PAIRS, READ, ROWS, Dataset, Pandas, Polars, written

from prompt_tuning import sources
from prompt_tuning.data.tabular import texts_of


@pytest.mark.parametrize("make", [Pandas, Polars, Dataset])
def test_frames_are_read_by_their_columns(make):
  found = sources.read("train", make(ROWS), **READ)
  assert found.pairs == [(f"review: {text}", mood) for text, mood in PAIRS]
  assert (found.inputs, found.targets) == ("review: {text}", "{mood}")


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl"])
def test_files_are_read_by_their_names(tmp_path, name):
  found = sources.read("train", written(tmp_path, name, ROWS), **READ)
  assert found.pairs[0] == ("review: a good film", "good")
  assert found.path == str(tmp_path / name)


def test_two_columns_are_pairs_and_text_and_label_are_known():
  two = [{"a": text, "b": mood} for text, mood in PAIRS]
  found = sources.read("train", Pandas(two))
  assert found.pairs == PAIRS and found.inputs is None
  three = [{"label": 1, "n": 0, "text": text} for text, _ in PAIRS]
  assert sources.read("train", Pandas(three)).pairs[0] == ("a good film", "1")


def test_numbers_become_texts():
  row = {"a": np.int64(3), "b": 0.5, "c": True, "d": float("nan"), 5: "x", "e": [1]}
  found = {"a": "3", "b": "0.5", "c": "True", "d": None, "5": "x", "e": [1]}
  assert texts_of(row) == found


class Splits(dict):
  """What a `datasets.DatasetDict` has."""

  column_names = {"test": ["text"]}


@pytest.mark.parametrize(
  ("given", "options", "words"),
  [
    (Splits(test=[]), {}, r"`train` holds the splits \['test'\]; give .*\[\"test\"\]"),
    (Pandas(ROWS), {}, r"`train` is a table of the columns \['text', 'id', 'mood'\]"),
    (Pandas(ROWS), {"inputs": "txt"}, "`train` has no column 'txt'.*inputs="),
    (PAIRS, {"inputs": "text"}, "name columns, but `train` has none: it is a list"),
    ("a film", {}, "`train` is the text 'a film'; give pairs .*\\.tsv"),
    (Pandas(ROWS), {"inputs": 5}, "`inputs` is 5; it must be a column's name"),
    (Pandas(ROWS), {"inputs": "{"}, "names no column"),
    (
      Pandas([*ROWS, {"text": "x", "id": 1, "mood": None}]),
      {"targets": "mood"},
      "`train` row 4: the column 'mood' holds nothing",
    ),
  ],
)
def test_what_does_not_fit_a_table(given, options, words):
  with pytest.raises(ValueError, match=words):
    sources.read("train", given, **options)

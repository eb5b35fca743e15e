"""The embedded default: a mini T5, its vocabulary, and a data set written for it."""

import pathlib

FOLDER = pathlib.Path(__file__).resolve().parent


def data_folder() -> str:
  """Folder of the embedded data set: train.tsv, validation.tsv and test.tsv."""
  return str(FOLDER / "data")

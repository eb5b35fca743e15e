"""The lines of metrics of a run, found beside its prompt."""

from typing import Any

from prompt_tuning.core import files
from prompt_tuning.engine import records
from prompt_tuning.engine.listed import Rows

NAME = "metrics.jsonl"


def near(path: Any) -> Rows:
  """The lines of the run that a prompt's folder is, or lies in; none elsewhere."""
  folder = files.at(path)
  for place in (folder, folder.parent):
    if (place / "config.gin").is_file() and (place / NAME).is_file():
      return Rows(line for _, line in records.read_lines(place / NAME)[0])
  return Rows()

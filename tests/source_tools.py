"""Stand-ins for frames of libraries that need not be installed, and files."""

import json

PAIRS = [("a good film", "good"), ("a bad film", "bad")] * 2
READ = {"inputs": "review: {text}", "targets": "mood"}


class Pandas:
  """What `sources` asks of a pandas frame."""

  def __init__(self, rows):
    self.columns, self.rows = list(rows[0]), rows

  def itertuples(self, index, name):
    assert (index, name) == (False, None)
    return iter([tuple(row.values()) for row in self.rows])


class Polars:
  def __init__(self, rows):
    self.columns, self.rows = list(rows[0]), rows

  def iter_rows(self):
    return iter([tuple(row.values()) for row in self.rows])


class Named:
  """A feature of classes."""

  def int2str(self, number):
    return ("bad", "good")[number]


class Dataset:
  """What `sources` asks of a `datasets.Dataset`."""

  def __init__(self, rows):
    self.column_names, self.rows = list(rows[0]), rows
    self.features = {"text": object(), "mood": Named()}

  def __iter__(self):
    return iter([{**row, "mood": int(row["mood"] == "good")} for row in self.rows])


ROWS = [{"text": text, "id": 7, "mood": mood} for text, mood in PAIRS]


def written(folder, name, rows):
  path = folder / name
  if name.endswith(".jsonl"):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  else:
    tab = "\t" if name.endswith(".tsv") else ","
    lines = [tab.join(rows[0]), *(tab.join(map(str, row.values())) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
  return path

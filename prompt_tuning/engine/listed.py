"""Rows that a person reads: plain lists of dicts that show themselves as a table."""

import html
import importlib.util
from collections.abc import Iterable, Sequence
from typing import Any

# Longest cell that is shown whole.
WIDEST = 72


class Rows(list):
  """A list of dicts with a table for a notebook, and a frame where pandas is.

  >>> rows = Rows([{"method": "a", "score": 0.5}, {"method": "b", "score": 0.25}])
  >>> rows
  method  score
  a         0.5
  b        0.25
  >>> [row["method"] for row in rows]
  ['a', 'b']
  """

  @property
  def columns(self) -> list[str]:
    """Names of all rows, in the order in which they first stand."""
    return list(dict.fromkeys(name for row in self for name in row))

  def frame(self) -> Any:
    """The rows as a `pandas.DataFrame`.

    Raises:
      ValueError: if pandas is not installed.
    """
    if importlib.util.find_spec("pandas") is None:
      raise ValueError("A frame needs pandas: pip install pandas. The rows are dicts.")
    import pandas

    return pandas.DataFrame(list(self), columns=self.columns)

  def __repr__(self) -> str:
    return table(self.columns, self)

  def _repr_html_(self) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in self.columns)
    body = "".join(
      "<tr>"
      + "".join(f"<td>{html.escape(cell(row.get(n)))}</td>" for n in self.columns)
      + "</tr>"
      for row in self
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


class Text(str):
  """A text that a notebook shows as it reads, line by line."""

  def __repr__(self) -> str:
    return str(self)


def cell(value: Any) -> str:
  """A value as people write it: four digits, thousands with commas, no None."""
  if value is None:
    return "-"
  if isinstance(value, bool) or isinstance(value, str):
    text = str(value)
  elif isinstance(value, int):
    text = f"{value:,}"
  elif isinstance(value, float):
    text = f"{value:.4g}"
  elif isinstance(value, dict):
    text = "  ".join(f"{name} {cell(item)}" for name, item in value.items())
  elif isinstance(value, list | tuple):
    text = " ".join(map(cell, value))
  else:
    text = str(value)
  text = " ".join(text.split())
  return text if len(text) <= WIDEST else f"{text[: WIDEST - 3]}..."


def share(part: int, whole: int) -> str:
  """A part of a whole in percent, two digits of it, such as "0.063 %"."""
  percent = 100 * part / whole if whole else 0.0
  return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %"


def table(columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> str:
  """Aligned text: words to the left, numbers to the right."""
  rows = list(rows)
  cells = [[cell(row.get(name)) for name in columns] for row in rows]
  lines = [list(columns), *cells]
  sizes = [max(len(line[i]) for line in lines) for i in range(len(columns))]
  right = [_numbers(row.get(name) for row in rows) for name in columns]
  return "\n".join(
    "  ".join(
      text.rjust(size) if to_right else text.ljust(size)
      for text, size, to_right in zip(line, sizes, right, strict=True)
    ).rstrip()
    for line in lines
  )


def _numbers(values: Iterable[Any]) -> bool:
  found = [value for value in values if value is not None]
  return bool(found) and all(
    isinstance(value, int | float) and not isinstance(value, bool) for value in found
  )

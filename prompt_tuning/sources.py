"""Examples as people have them: pairs, a frame, a file, a dataset.

A frame is whatever has named columns (pandas, polars, `datasets.Dataset`, pyarrow): it
is known by its methods, so that none of these need be installed.
"""

import dataclasses
import os
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prompt_tuning import arguments
from prompt_tuning.arguments import Pair
from prompt_tuning.data import tables
from prompt_tuning.data.reading import Reading
from prompt_tuning.data.tabular import texts_of

# Columns that are read where nobody says which.
INPUT, TARGET = "text", "label"


@dataclasses.dataclass(frozen=True)
class Source:
  """Attributes:
  pairs: of texts. inputs, targets: the templates that made them of rows; None where
    the caller gave pairs.
  path: of the file that they stand in, or None.
  """

  pairs: Sequence[Pair]
  inputs: str | None = None
  targets: str | None = None
  path: str | None = None


def read(
  name: str, value: Any, inputs: str | None = None, targets: str | None = None
) -> Source:
  """The pairs of what a caller gave.

  Args:
    name: the argument, for messages.
    value: pairs (see `arguments.pairs`), a frame, or the path of a TSV, CSV or JSONL.
    inputs, targets: a column's name, or a template such as "review: {text}"; None takes
      "text" and "label", and of a frame of two columns those two.

  Raises:
    ValueError: naming the row and the column of what is missing, or what there is.
  """
  _check_names(inputs, targets)
  if isinstance(value, str | os.PathLike):
    path = os.fspath(value)
    if tables.kind(path) is None:
      raise ValueError(
        f"`{name}` is the text {reprlib.repr(path)}; give pairs such as [('a film', "
        f"'good')], or a file whose name ends in one of {', '.join(tables.KINDS)}."
      )
    return _made(name, tables.read(path, name), inputs, targets, path)
  columns = names_of(value)
  if columns is not None:
    return _of_frame(name, value, columns, inputs, targets)
  if isinstance(getattr(value, "column_names", None), Mapping):
    raise ValueError(
      f"`{name}` holds the splits {list(value)}; give one of them: "
      f'{name}=data["{next(iter(value), "train")}"].'
    )
  if inputs is not None or targets is not None:
    raise ValueError(
      f"`inputs` and `targets` name columns, but `{name}` has none: it is a "
      f"{type(value).__name__} of pairs. Leave them out, or give a frame or a file."
    )
  return Source(arguments.pairs(name, value))


def _check_names(inputs: Any, targets: Any) -> None:
  for given, what in ((inputs, "inputs"), (targets, "targets")):
    if given is not None and (not isinstance(given, str) or not given.strip()):
      raise ValueError(
        f"`{what}` is {given!r}; it must be a column's name, or a template such as "
        "'review: {text}'."
      )


def _of_frame(
  name: str,
  value: Any,
  columns: Sequence[str],
  inputs: str | None,
  targets: str | None,
) -> Source:
  asked = inputs is not None or targets is not None
  if not asked and not {INPUT, TARGET} <= set(columns):
    if len(columns) == 2:
      found = _records(value, columns)
      rows = [tuple(texts_of(row).values()) for row in found]
      return Source(arguments.pairs(name, rows))
    raise ValueError(
      f"`{name}` is a table of the columns {columns}; say which hold inputs and "
      f'targets: inputs="{columns[0] if columns else "text"}", targets="label".'
    )
  rows = [
    tables.Row(f"`{name}` row {number}", texts_of(row), number)
    for number, row in enumerate(_records(value, columns))
  ]
  return _made(name, rows, inputs, targets, None)


def names_of(value: Any) -> list[str] | None:
  """Names of the columns of a frame; None for what is none."""
  for attribute in ("column_names", "columns"):
    found = getattr(value, attribute, None)
    if found is not None and not callable(found) and not isinstance(found, Mapping):
      return [str(name) for name in found]
  return None


def template(given: str | None, default: str) -> str:
  """A template: of a column's name the column alone."""
  given = default if given is None else given
  return given if "{" in given else f"{{{given}}}"


def _records(value: Any, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
  """The rows of a frame as {column: value}; numbered classes by their names."""
  if hasattr(value, "itertuples"):
    found = value.itertuples(index=False, name=None)
  elif hasattr(value, "iter_rows"):
    found = value.iter_rows()
  elif hasattr(value, "to_pylist"):
    found = (tuple(row.values()) for row in value.to_pylist())
  else:
    found = ([row[name] for name in columns] for row in value)
  features = getattr(value, "features", None) or {}
  named = {
    name: feature.int2str
    for name in columns
    if hasattr(feature := dict(features).get(name), "int2str")
  }
  for row in found:
    values = dict(zip(columns, row, strict=True))
    for name, word in named.items():
      # -1 stands for a row without a label.
      values[name] = word(values[name]) if values[name] != -1 else None
    yield values


def _made(
  name: str,
  rows: Sequence[tables.Row],
  inputs: str | None,
  targets: str | None,
  path: str | None,
) -> Source:
  if not rows:
    raise ValueError(f"`{name}` {f'{path!r} ' if path else ''}holds no rows.")
  sides = [
    Reading(template(given, default))
    for given, default in ((inputs, INPUT), (targets, TARGET))
  ]
  pairs = []
  for row in rows:
    for side in sides:
      for column in side.columns:
        if column not in row.values:
          raise ValueError(
            f"`{name}` has no column {column!r}. It has {list(row.values)}: say which "
            f"are meant by inputs= and targets=."
          )
        if row.values[column] in (None, ""):
          raise ValueError(f"{row.where}: the column {column!r} holds nothing.")
    pairs.append((sides[0].text(row), sides[1].text(row)))
  return Source(pairs, sides[0].inputs, sides[1].inputs, path)

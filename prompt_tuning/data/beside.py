"""What the rows of a file that asks bring besides their texts: tasks and vectors."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from prompt_tuning.data import reading as readings
from prompt_tuning.data import tables, vectors
from prompt_tuning.data.files import column_vector
from prompt_tuning.data.given import Wants


@dataclasses.dataclass(frozen=True)
class Beside:
  """A function of rows.

  Attributes:
    wants: what the prompt reads.
    task: of all rows, or None. task_column: a column of numbers or names, or None.
    external_column: a column of vectors, or None.
    held: vectors of all rows of the file, or None.
  """

  wants: Wants
  task: int | None = None
  task_column: str | None = None
  external_column: str | None = None
  held: vectors.Vectors | None = None

  def __call__(self, row: tables.Row) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    if self.task is not None:
      found["task"] = np.int32(self.task)
    elif self.task_column is not None:
      text = row.get(self.task_column, "TASK_COLUMN")
      try:
        found["task"] = np.int32(self.wants.task(text, "TASK_COLUMN"))
      except ValueError as error:
        raise ValueError(f"{row.where}: {error}") from None
    if self.wants.width:
      found["external"] = self._vector(row)
    return found

  def _vector(self, row: tables.Row) -> np.ndarray:
    if self.held is not None:
      return self.held.row(row.number)
    vector_C = column_vector(row, self.external_column, "EXTERNAL_COLUMN")
    try:
      return self.wants.vector(vector_C, "EXTERNAL_COLUMN")
    except ValueError as error:
      raise ValueError(f"{row.where}: {error}") from None


def of(
  path: str,
  wants: Wants,
  reading: readings.Reading | None,
  task: Any = None,
  task_column: str | None = None,
  external_column: str | None = None,
  external_file: str | None = None,
) -> Beside:
  """Where the rows of a file have what a prompt wants.

  Args:
    path: the file. wants: what the prompt reads. reading: of its card, whose columns
      hold where nothing else is said.
    task, task_column, external_column, external_file: the arguments of `infer`.

  Raises:
    ValueError: for what is missing, said twice, or not read.
  """
  chosen = _task(wants, reading, task, task_column)
  vector = _external(path, wants, reading, external_column, external_file)
  found = Beside(wants, *chosen, *vector)
  for name in ("task_column", "external_column"):
    column = getattr(found, name)
    if column is not None and tables.kind(path) is None:
      raise ValueError(
        f"`{name.upper()}` is {column!r}, but `INPUT_FILE` {path!r} holds plain lines. "
        f"Columns have files that end in one of {', '.join(tables.KINDS)}."
      )
  return found


def _task(
  wants: Wants, reading: readings.Reading | None, task: Any, column: str | None
) -> tuple[int | None, str | None]:
  if not wants.tasks:
    for name, value in (("PROMPT_TASK", task), ("TASK_COLUMN", column)):
      if value is not None:
        raise ValueError(
          f"`{name}` is {value!r}, but the prompt tells no tasks apart. Leave it out."
        )
    return None, None
  if task is not None and column is not None:
    raise ValueError(
      f"`PROMPT_TASK` is {task!r} and `TASK_COLUMN` {column!r}: give the task of all "
      "rows, or the column that says each one's."
    )
  if task is not None:
    return wants.task(task, "PROMPT_TASK"), None
  column = column or (reading and reading.task_column)
  if column is None:
    raise ValueError(
      f"`PROMPT_TASK` is None, but the prompt tells {wants.tasks} tasks apart. Set it "
      f"to {wants.task_words}, or `TASK_COLUMN` to the column that says so."
    )
  return None, column


def _external(
  path: str,
  wants: Wants,
  reading: readings.Reading | None,
  column: str | None,
  file: str | None,
) -> tuple[str | None, vectors.Vectors | None]:
  if not wants.width:
    for name, value in (("EXTERNAL_COLUMN", column), ("EXTERNAL_FILE", file)):
      if value is not None:
        raise ValueError(
          f"`{name}` is {value!r}, but the prompt reads no vectors. Leave it out."
        )
    return None, None
  if file is not None and column is not None:
    raise ValueError(
      f"`EXTERNAL_COLUMN` is {column!r} and `EXTERNAL_FILE` {file!r}: vectors come "
      "from one of them."
    )
  if file is None:
    column = column or (reading and reading.external_column)
    if column is None:
      raise ValueError(
        f"`EXTERNAL_COLUMN` and `EXTERNAL_FILE` are None, but the prompt reads a "
        f"vector of width {wants.width} for each row. Set one of them."
      )
    return column, None
  held = vectors.opened(file, "EXTERNAL_FILE")
  if held.array.shape[1] != wants.width:
    raise ValueError(
      f"`EXTERNAL_FILE` is {file!r} of vectors of width {held.array.shape[1]}, but the "
      f"prompt reads width {wants.width} (CODE_WIDTH)."
    )
  held.check_count(readings.count(path, reading))
  return None, held

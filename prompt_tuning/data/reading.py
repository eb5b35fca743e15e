"""How rows become inputs: the template and columns that a prompt was trained with.

What training read of a file through `data.files.Files`, those who answer read again of
theirs, without the label. A table (TSV, CSV, JSONL) gives columns; any other file gives
lines, each the one column of the template.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prompt_tuning.data import files, lines, tables
from prompt_tuning.data.fewshot import FewShot
from prompt_tuning.data.mixtures import Mixture
from prompt_tuning.data.tabular import Tabular
from prompt_tuning.data.task import MARK
from prompt_tuning.data.texts import plain

# Columns that are the whole input where no template says which are.
PLAIN = ("text", "inputs")


@dataclasses.dataclass(frozen=True)
class Reading:
  """Attributes:
  inputs: template of the input. targets: template of the target, or None.
  label_column, label_map: see `data.files.Files`.
  quoted: whether fields of a TSV file stand in double quotes.
  external_column, task_column: see `data.files.Files`; None for none.
  """

  inputs: str
  targets: str | None = None
  label_column: str = "label"
  label_map: Mapping[str, str] | None = None
  quoted: bool = False
  external_column: str | None = None
  task_column: str | None = None

  @functools.cached_property
  def columns(self) -> tuple[str, ...]:
    """Columns that the template of inputs names, each once.

    Raises:
      ValueError: if it names none, or its braces do not fit.
    """
    found = [name for name, is_column in self.pieces if is_column]
    if not found:
      raise ValueError(
        f"`INPUTS` is {self.inputs!r}, which names no column. Write one in braces: "
        "'review: {text}'."
      )
    return tuple(dict.fromkeys(found))

  @functools.cached_property
  def pieces(self) -> list[tuple[str, bool]]:
    """(text, or name of a column; whether it is one) of the template, in order."""
    return files._pieces(self.inputs, "INPUTS")

  def text(self, row: tables.Row) -> str:
    """The input of a row.

    Raises:
      ValueError: if it lacks a column, or one of its texts holds `MARK` and is not the
        whole input.
    """
    texts = {name: row.get(name, "INPUTS") for name in self.columns}
    whole = self.inputs == f"{{{self.columns[0]}}}"
    for text in texts.values():
      if text.count(MARK) > whole:
        raise ValueError(
          f"{row.where}: a text holds {MARK}, which only a template may hold: it marks "
          "the place of the prompt. Change the text."
        )
    return "".join(texts[piece] if named else piece for piece, named in self.pieces)

  def line(self, where: str, text: str) -> str:
    """The input of a text that is the one column.

    Raises:
      ValueError: if the template has several, or the text holds `MARK`.
    """
    if len(self.columns) > 1:
      raise ValueError(
        f"{where} is one text, but inputs are read as {self.inputs!r}, which takes the "
        f"columns {list(self.columns)}. Give these (in a file: TSV, CSV or JSONL), or "
        "another template of one column ('{text}' takes a text as the whole input)."
      )
    return self.text(tables.Row(where, {self.columns[0]: text}))


def of_task(task: Any) -> Reading | None:
  """How a task reads files; None where it is none of files."""
  while isinstance(task, FewShot):
    task = task.task
  if isinstance(task, Mixture):
    return _of_members(task)
  if isinstance(task, Tabular):
    return Reading(task.inputs, task.targets)
  if not isinstance(task, files.Files):
    return None
  label_map = None if task.label_map is None else dict(task.label_map)
  quoted = getattr(task, "quoted", False)
  return Reading(
    task.inputs,
    task.targets,
    task.label_column,
    label_map,
    quoted,
    task.external_column,
    task.task_column,
  )


def _of_members(task: Mixture) -> Reading | None:
  """How inputs are read where all tasks of a mixture read theirs alike."""
  found = {
    None
    if own is None
    else Reading(own.inputs, quoted=own.quoted, external_column=own.external_column)
    for own in map(of_task, task.tasks)
  }
  return found.pop() if len(found) == 1 else None


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
  """An input that wants an answer: its text, its id where the file has some, and what
  it brings besides (`task`, `external`).
  """

  text: str
  id: str | None = None
  beside: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def asked(
  path: str,
  reading: Reading | None,
  id_column: str | None = None,
  beside: Callable[[tables.Row], Mapping[str, Any]] = lambda row: {},
) -> Iterator[Asked]:
  """The inputs of a file, one at a time, in order.

  Args:
    path: a table by its ending (`data.tables.KINDS`), else plain lines; see
      `data.lines`.
    reading: template and quoting; None takes the column of `PLAIN` that there is, the
      only column, or a line, as the whole input.
    id_column: a column of a table whose text is the id.
    beside: what a row brings besides its text; a line is a row without columns.

  Raises:
    ValueError: naming the file and line of what is wrong, as it is read.
  """
  if reading is not None:
    _ = reading.columns
  if tables.kind(path) is None:
    if id_column is not None:
      raise ValueError(
        f"`ID_COLUMN` is {id_column!r}, but `INPUT_FILE` {path!r} holds plain lines. "
        f"Columns have files that end in one of {', '.join(tables.KINDS)}."
      )
    for number, line in enumerate(lines.lines(path, "INPUT_FILE")):
      text = line.text if reading is None else reading.line(line.where, line.text)
      yield Asked(text, None, beside(tables.Row(line.where, {}, number)))
    return
  rows = tables.rows(path, "INPUT_FILE", reading is not None and reading.quoted)
  for row in rows:
    if reading is None:
      reading = Reading(f"{{{_only(row)}}}")
    key = None if id_column is None else row.get(id_column, "ID_COLUMN")
    yield Asked(reading.text(row), key, beside(row))


def _only(row: tables.Row) -> str:
  """The column that can only be the input."""
  found = [name for name in PLAIN if name in row.values]
  if not found and len(row.values) == 1:
    found = list(row.values)
  if len(found) != 1:
    raise ValueError(
      f"{row.where}: which column is the input? There are {tables.some(row.values)}, "
      "and the prompt's card says none. Set INPUTS, such as \"'{text}'\"."
    )
  return found[0]


def texts(values: Iterable[Any], reading: Reading | None) -> list[str]:
  """Inputs of texts, or of mappings from column to text.

  Raises:
    ValueError: naming what does not fit and its number.
  """
  if isinstance(values, (str, Mapping)):
    raise ValueError(
      f"`texts` is {tables.short(values)}; it must be a list, also of one text."
    )
  found = []
  for number, value in enumerate(values):
    where = f"`texts[{number}]`"
    if isinstance(value, Mapping):
      if reading is None:
        raise ValueError(
          f"{where} is {tables.short(value)}, but the prompt's card has no template "
          "that takes columns. Give a text."
        )
      found.append(reading.text(tables.Row(where, dict(value))))
    elif isinstance(value, str):
      found.append(
        plain(where, value) if reading is None else reading.line(where, value)
      )
    else:
      raise ValueError(f"{where} is {tables.short(value)}; it must be a text.")
  return found


def count(path: str, reading: Reading | None) -> int:
  """How many inputs a file holds."""
  if tables.kind(path) is None:
    return sum(1 for _ in lines.lines(path, "INPUT_FILE"))
  quoted = reading is not None and reading.quoted
  return sum(1 for _ in tables.rows(path, "INPUT_FILE", quoted))

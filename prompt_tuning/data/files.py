"""Tasks from TSV, CSV or JSONL files, described wholly in gin.

files.Files:
  train = "train.tsv"
  inputs = "question: {question} passage: {passage}"
  label_map = {"0": "no", "1": "yes"}
"""

import dataclasses
import functools
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from prompt_tuning.data import tables, vectors
from prompt_tuning.data.fewshot import check, draw
from prompt_tuning.data.task import MARK, Example, TextTask
from prompt_tuning.data.texts import SHOWN, no_text, short, some
from prompt_tuning.data.vectors import Vectors

SPLITS = ("train", "validation", "test")
_PIECES = re.compile(r"\{\{|\}\}|\{[^{}]*\}|[{}]")

# What `rows` may be: a text for each column, or such a mapping for each split.
Rows = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Files(TextTask):
  """Rows of files through two templates.

  Attributes:
    train, validation, test: paths of the splits' files, at least one; the suffix says
      what they are (`tables.KINDS`). Nothing in a path is expanded.
    directory: what relative paths start at; the current directory if empty.
    inputs: template of the input, column names in braces, "{{" and "}}" for braces
      themselves. At most one `<prompt>` marks where a prompt shall stand.
    targets: template of the target. None leaves targets empty, for files without
      labels that are only predicted on.
    label_column: the column that `label_map` applies to.
    label_map: {what the file says: the target's word}; other values are refused. It
      applies to the targets' template only.
    labels: the target strings of a classification task; those of `label_map`, in order,
      where not given and the target is the label alone. Other targets are refused.
    rows: which rows to keep, {column: value}, or {split: {column: value}} where the
      splits differ.
    quoted: whether fields of TSV files may stand in double quotes, as pandas writes
      them; those of CSV files may without a word.
    external_column: a column of vectors, see `data.vectors`; they become `external`.
    external_file: path of a .npy of vectors in place of a column; "{split}" in it
      stands for the split's name, and must where there are several.
    task_column: a column of whole numbers from 0, the tasks of the rows.
    shots: train on so many examples of each label; without labels see
      `fewshot.FewShot`.
    shot_seed: of that draw.
  """

  train: str | None = None
  validation: str | None = None
  test: str | None = None
  directory: str = ""
  inputs: str = "{text}"
  targets: str | None = "{label}"
  label_column: str = "label"
  label_map: Mapping[str, str] | None = None
  rows: Rows | None = None
  quoted: bool = False
  external_column: str | None = None
  external_file: str | None = None
  task_column: str | None = None
  shots: int | None = None
  shot_seed: int = 0
  name: str = dataclasses.field(default="files", kw_only=True)
  metrics: Sequence[str] = dataclasses.field(default=("accuracy",), kw_only=True)

  def __post_init__(self) -> None:
    if not self.splits:
      raise ValueError("`Files` names no file: set `train`, `validation` or `test`.")
    for field in ("directory", *self.splits):
      self._set(field, _path(getattr(self, field), f"Files.{field}"))
    pieces = _pieces(self.inputs, "Files.inputs")
    if sum(piece.count(MARK) for piece, is_column in pieces if not is_column) > 1:
      raise ValueError(
        f"`Files.inputs` holds {MARK} more than once: {self.inputs!r}. Write it once."
      )
    _check_columns(pieces, "Files.inputs", self.inputs, "'review: {text}'")
    if self.targets is not None:
      pieces = _pieces(self.targets, "Files.targets")
      _check_columns(pieces, "Files.targets", self.targets, "'{label}'")
    if not isinstance(self.quoted, bool):
      raise ValueError(f"`Files.quoted` must be True or False, got {self.quoted!r}.")
    self._check_beside()
    if self.shots is not None:
      check(self.shots, self.shot_seed, "Files.shots", "Files.shot_seed")
    if self.label_map is not None:
      _check_mapping(self.label_map, "Files.label_map", "{'0': 'no', '1': 'yes'}")
      self._set("label_map", {str(k): str(v) for k, v in self.label_map.items()})
      words = tuple(dict.fromkeys(self.label_map.values()))
      alone = self.targets == f"{{{self.label_column}}}"
      if self.labels is None and alone and len(words) > 1:
        self._set("labels", words)
    self._set("rows", _rows_by_split(self.rows))
    super().__post_init__()

  def _check_beside(self) -> None:
    if self.external_file is None:
      return
    self._set("external_file", _path(self.external_file, "Files.external_file"))
    if self.external_column is not None:
      raise ValueError(
        f"`Files.external_column` is {self.external_column!r} and "
        f"`Files.external_file` {self.external_file!r}: vectors come from one of them."
      )
    if len(self.splits) > 1 and "{split}" not in self.external_file:
      raise ValueError(
        f"`Files.external_file` is {self.external_file!r} for the splits "
        f"{list(self.splits)}. Write '{{split}}' where their names differ, such as "
        "'vectors-{split}.npy'."
      )

  @property
  def splits(self) -> tuple[str, ...]:
    """Those of "train", "validation" and "test" that have a file."""
    return tuple(split for split in SPLITS if getattr(self, split))

  def _read(self, split: str) -> list[Example]:
    argument = f"Files.{split}"
    path = _join(self.directory, getattr(self, split))
    rows = tables.rows(path, argument, self.quoted)
    first = next(rows, None)
    if first is None:
      raise ValueError(f"`{argument}` is {path!r}, which holds no rows.")
    held, numbers = self._vectors(split), itertools.count()
    counted = zip(itertools.chain([first], rows), numbers, strict=False)
    kept = self._kept((row for row, _ in counted), split, path)
    examples = [{**self._example(row), **self._beside(row, held)} for row in kept]
    if held is not None:
      held.check_count(next(numbers))
    if split != "train" or self.shots is None:
      return examples
    answers = [example["targets"] for example in examples]
    labels = self.labels if self.separator is None else None
    (chosen,) = draw(answers, labels, [self.shots], self.shot_seed, "Files.shots", path)
    return [examples[i] for i in chosen]

  def _vectors(self, split: str) -> Vectors | None:
    if self.external_file is None:
      return None
    path = _join(self.directory, self.external_file.replace("{split}", split))
    return vectors.opened(path, "Files.external_file")

  def _beside(self, row: tables.Row, beside: Vectors | None) -> Example:
    """`external` and `task` of a row, where they are asked for."""
    found: Example = {}
    if beside is not None:
      found["external"] = beside.row(row.number)
    elif self.external_column is not None:
      found["external"] = column_vector(
        row, self.external_column, "Files.external_column"
      )
    if self.task_column is not None:
      found["task"] = column_number(row, self.task_column, "Files.task_column")
    return found

  def _kept(
    self, rows: Iterable[tables.Row], split: str, path: str
  ) -> Iterator[tables.Row]:
    """The rows that the filter keeps.

    Raises:
      ValueError: at the end, if it has kept none.
    """
    asked = self.rows.get(split, {})
    found: dict[str, dict[str, None]] = {column: {} for column in asked}
    fits = dict.fromkeys(asked, False)
    for row in rows:
      for column, value in asked.items():
        has = row.get(column, "Files.rows")
        if len(found[column]) <= SHOWN:
          found[column][has] = None
        if has != value:
          break
        fits[column] = True
      else:
        yield row
    for column, value in asked.items():
      if not fits[column]:
        raise ValueError(
          f"`Files.rows` keeps rows of {path!r} with {column!r} equal to {value!r}, "
          f"and there is none. There are {some(found[column])}."
        )

  def _example(self, row: tables.Row) -> Example:
    inputs = _fill(self.inputs, row, "Files.inputs")
    if inputs.count(MARK) != self.inputs.count(MARK):
      raise ValueError(
        f"{row.where}: a text holds {MARK}, which only a template may hold: it marks "
        "the place of the prompt. Change the text."
      )
    return {"inputs": inputs, "targets": self._target(row)}

  def _target(self, row: tables.Row) -> str:
    if self.targets is None:
      return ""
    if self.label_map is not None:
      label = row.get(self.label_column, "Files.label_column")
      if label not in self.label_map:
        raise ValueError(
          f"{row.where}: the label {short(label)} is not in `Files.label_map`, which "
          f"has {some(self.label_map)}."
        )
      values = {**row.values, self.label_column: self.label_map[label]}
      row = tables.Row(row.where, values)
    target = _fill(self.targets, row, "Files.targets")
    if not target.strip():
      raise ValueError(
        f"{row.where}: the target is empty. Give each row one, or set `Files.targets` "
        "= None for a file to predict on."
      )
    target, unknown = self._settled(target)
    if unknown is not None:
      raise ValueError(
        f"{row.where}: the target {short(unknown)} is not among `Files.labels`, "
        f"{some(self.labels)}. Add it, or map it with `Files.label_map`."
      )
    return target


def column_vector(row: tables.Row, column: str, argument: str) -> vectors.Vector:
  """The vector in a column of a row; raises ValueError if there is none."""
  where = f"{row.where}: the column {column!r}"
  return vectors.parsed(row.held(column, argument), where, argument)


def column_number(row: tables.Row, column: str, argument: str) -> int:
  """The whole number from 0 in a column of a row; raises ValueError for others."""
  text = row.get(column, argument)
  if not (text.isdecimal() and text.isascii() and len(text) < 10):
    raise ValueError(
      f"{row.where}: the column {column!r} of `{argument}` holds {short(text)}; it "
      "must be the number of a task, from 0."
    )
  return int(text)


def _check_columns(
  pieces: Iterable[tuple[str, bool]], argument: str, template: str, example: str
) -> None:
  """Refuses a template that is the same text for every row."""
  if not any(is_column for _, is_column in pieces):
    raise ValueError(
      f"`{argument}` is {template!r}, which names no column, so that it would be the "
      f"same for every row. Write one in braces: {example}."
    )


@functools.cache
def _pieces(template: str, argument: str) -> list[tuple[str, bool]]:
  """[(text or column name, whether it is a column)] of a template."""
  fault = no_text(template)
  if fault:
    raise ValueError(f"`{argument}` is {short(template)}, which has {fault}.")
  pieces, start = [], 0
  for match in _PIECES.finditer(template):
    pieces.append((template[start : match.start()], False))
    found, start = match.group(), match.end()
    if found in ("{{", "}}"):
      pieces.append((found[0], False))
    elif len(found) > 2:
      pieces.append((found[1:-1], True))
    else:
      raise ValueError(
        f"`{argument}` is {template!r}; its {found!r} at position {match.start() + 1} "
        "names no column. Write '{{' and '}}' for braces themselves."
      )
  return [*pieces, (template[start:], False)]


def _fill(template: str, row: tables.Row, argument: str) -> str:
  return "".join(
    row.get(piece, argument) if is_column else piece
    for piece, is_column in _pieces(template, argument)
  )


def _rows_by_split(rows: Rows | None) -> dict[str, dict[str, str]]:
  """The filter of each split, columns and values as texts."""
  if rows is not None:
    _check_mapping(rows, "Files.rows", "{'split': 'a'}")
  rows = dict(rows or {})
  if not any(isinstance(value, Mapping) for value in rows.values()):
    rows = dict.fromkeys(SPLITS, rows)
  fits = all(isinstance(value, Mapping) for value in rows.values())
  if not fits or not set(rows) <= set(SPLITS):
    raise ValueError(
      f"`Files.rows` must be {{column: value}}, or such a mapping for each of "
      f"{list(SPLITS)}, got {rows!r}."
    )
  return {
    split: {str(column): str(value) for column, value in own.items()}
    for split, own in rows.items()
  }


def _check_mapping(value: Any, argument: str, example: str) -> None:
  if not isinstance(value, Mapping):
    raise ValueError(f"`{argument}` must be such as {example}, got {short(value)}.")


def _path(value: Any, argument: str) -> str:
  if not isinstance(value, str | os.PathLike):
    raise ValueError(f"`{argument}` must be a path in quotes, got {short(value)}.")
  return os.fspath(value)


def _join(directory: str, path: str) -> str:
  """`path` in `directory`, unless it is absolute or of another file system."""
  if not directory or "://" in path or path.startswith("/"):
    return path
  return f"{directory.rstrip('/') or '/'}/{path}"

"""Tasks from TSV or JSONL files, described wholly in gin.

files.Files:
  train = "train.tsv"
  inputs = "question: {question} passage: {passage}"
  label_map = {"0": "no", "1": "yes"}
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prompt_tuning.data import tables
from prompt_tuning.data.fewshot import draw
from prompt_tuning.data.task import MARK, Example, TextTask

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
    shots: train on so many examples of each label (altogether without labels).
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
  shots: int | None = None
  shot_seed: int = 0
  name: str = dataclasses.field(default="files", kw_only=True)
  metrics: Sequence[str] = dataclasses.field(default=("accuracy",), kw_only=True)

  def __post_init__(self) -> None:
    if not self.splits:
      raise ValueError("`Files` names no file: set `train`, `validation` or `test`.")
    pieces = _pieces(self.inputs, "Files.inputs")
    if sum(piece.count(MARK) for piece, is_column in pieces if not is_column) > 1:
      raise ValueError(
        f"`Files.inputs` holds {MARK} more than once: {self.inputs!r}. Write it once."
      )
    if self.targets is not None:
      _pieces(self.targets, "Files.targets")
    if self.label_map is not None:
      self._set("label_map", {str(k): str(v) for k, v in self.label_map.items()})
      words = tuple(dict.fromkeys(self.label_map.values()))
      alone = self.targets == f"{{{self.label_column}}}"
      if self.labels is None and alone and len(words) > 1:
        self._set("labels", words)
    self._set("rows", _rows_by_split(self.rows))
    super().__post_init__()

  @property
  def splits(self) -> tuple[str, ...]:
    """Those of "train", "validation" and "test" that have a file."""
    return tuple(split for split in SPLITS if getattr(self, split))

  def _read(self, split: str) -> list[Example]:
    argument = f"Files.{split}"
    path = _join(self.directory, getattr(self, split))
    rows = tables.read(path, argument)
    if not rows:
      raise ValueError(f"`{argument}` is {path!r}, which holds no rows.")
    kept = self._kept(rows, split, path)
    examples = [self._example(row) for row in kept]
    if split != "train" or self.shots is None:
      return examples
    targets = [example["targets"] for example in examples]
    (chosen,) = draw(
      targets, self.labels, [self.shots], self.shot_seed, "Files.shots", path
    )
    return [examples[i] for i in chosen]

  def _kept(self, rows: list[tables.Row], split: str, path: str) -> list[tables.Row]:
    for column, value in self.rows.get(split, {}).items():
      found = [row.get(column, "Files.rows") for row in rows]
      rows = [row for row, has in zip(rows, found, strict=True) if has == value]
      if not rows:
        raise ValueError(
          f"`Files.rows` keeps rows of {path!r} with {column!r} equal to {value!r}, "
          f"and there is none. There are {_some(found)}."
        )
    return rows

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
          f"{row.where}: the label {label!r} is not in `Files.label_map`, which has "
          f"{list(self.label_map)}."
        )
      values = {**row.values, self.label_column: self.label_map[label]}
      row = tables.Row(row.where, values)
    target = _fill(self.targets, row, "Files.targets")
    if not target.strip():
      raise ValueError(
        f"{row.where}: the target is empty. Give each row one, or set `Files.targets` "
        "= None for a file to predict on."
      )
    if self.labels is not None and target not in self.labels:
      raise ValueError(
        f"{row.where}: the target {target!r} is not among `Files.labels`, "
        f"{list(self.labels)}. Add it, or map it with `Files.label_map`."
      )
    return target


@functools.cache
def _pieces(template: str, argument: str) -> list[tuple[str, bool]]:
  """[(text or column name, whether it is a column)] of a template."""
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


def _join(directory: str, path: str) -> str:
  """`path` in `directory`, unless it is absolute or of another file system."""
  if not directory or "://" in path or path.startswith("/"):
    return path
  return f"{directory.rstrip('/') or '/'}/{path}"


def _some(values: Iterable[str], most: int = 10) -> list[str]:
  """The different values, in order of appearance, cut short."""
  different = list(dict.fromkeys(values))
  return different if len(different) <= most else [*different[:most], "..."]

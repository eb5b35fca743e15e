"""Reads TSV and JSONL files, plain or gzipped, into rows of named texts.

TSV: UTF-8, the first line names the columns, one row a line, split on tabs; nothing is
quoted or escaped. JSONL: one object a line; numbers keep their spelling, true and false
become "True" and "False", null becomes "". Lines end in "\\n" or "\\r\\n" alone.

What does not fit is refused with the file and the line, counted from 1.
"""

import dataclasses
import gzip
import json
import zlib
from collections.abc import Iterator
from typing import Any

KINDS = (".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz", ".json", ".json.gz")


@dataclasses.dataclass(frozen=True)
class Row:
  """One row: the line it stands in, and its texts by column."""

  where: str
  values: dict[str, str]

  def get(self, column: str, argument: str) -> str:
    """The text of a column; `argument` says who asks, should there be none."""
    value = self.values.get(column)
    if value is None:
      raise ValueError(
        f"{self.where}: `{argument}` asks for the column {column!r}, which there is "
        f"not. There are {list(self.values)}."
      )
    if not isinstance(value, str):
      raise ValueError(
        f"{self.where}: the column {column!r} of `{argument}` holds {value!r}; it must "
        "be a text, a number, true, false or null."
      )
    return value


def read(path: str, argument: str) -> list[Row]:
  """All rows of a file.

  Args:
    path: local, or of a kind that `etils.epath` opens ("gs://...").
    argument: who names the file, for messages.

  Raises:
    ValueError: naming the file and line of what is wrong.
  """
  kind = path.lower().removesuffix(".gz")
  if not kind.endswith((".tsv", ".jsonl", ".json")):
    raise ValueError(
      f"`{argument}` is {path!r}; its name must end in one of {', '.join(KINDS)}. A "
      "comma-separated file must be turned into one of these."
    )
  lines = _lines(path, argument)
  return list(_tsv(path, lines) if kind.endswith(".tsv") else _jsonl(path, lines))


def _bytes(path: str, argument: str) -> bytes:
  from etils import epath

  try:
    data = epath.Path(path).read_bytes()
  except FileNotFoundError:
    raise ValueError(
      f"`{argument}` is {path!r}, which does not exist. A relative path starts at the "
      "task's `directory`, or else where the program was started."
    ) from None
  except OSError as error:
    raise ValueError(
      f"`{argument}` is {path!r}, which cannot be read: {error}."
    ) from error
  if not path.lower().endswith(".gz"):
    return data
  try:
    return gzip.decompress(data)
  except (OSError, EOFError, zlib.error) as error:
    raise ValueError(
      f"`{argument}` is {path!r}, which is no whole gzip file: {error}."
    ) from error


def _lines(path: str, argument: str) -> Iterator[tuple[str, str]]:
  """(file and line number, text of the line); the empty end of a file is no line."""
  raw = _bytes(path, argument).removeprefix(b"\xef\xbb\xbf").split(b"\n")
  while raw and not raw[-1].strip(b"\r"):
    raw.pop()
  for number, line in enumerate(raw, start=1):
    where = f"{path} line {number}"
    try:
      yield where, line.removesuffix(b"\r").decode("utf-8")
    except UnicodeDecodeError as error:
      raise ValueError(
        f"{where} is not UTF-8: byte {error.object[error.start]:#04x} at its position "
        f"{error.start + 1}. Save the file as UTF-8."
      ) from None


def _tsv(path: str, lines: Iterator[tuple[str, str]]) -> Iterator[Row]:
  where, header = next(lines, (path, ""))
  columns = header.split("\t")
  if not all(columns):
    raise ValueError(
      f"{where} must name the columns, separated by tabs; it reads {header!r}."
    )
  twice = sorted({name for name in columns if columns.count(name) > 1})
  if twice:
    raise ValueError(f"{where} names the column {twice[0]!r} twice: {columns}.")
  for where, line in lines:
    fields = line.split("\t")
    if len(fields) != len(columns):
      raise ValueError(
        f"{where} has {len(fields)} fields separated by tabs, but line 1 names "
        f"{len(columns)} columns: {columns}. A text may hold neither a tab nor a line "
        "break."
      )
    yield Row(where, dict(zip(columns, fields, strict=True)))


def _jsonl(path: str, lines: Iterator[tuple[str, str]]) -> Iterator[Row]:
  for where, line in lines:
    if not line.strip():
      continue
    try:
      value = json.loads(
        line,
        object_pairs_hook=lambda pairs, where=where: _object(pairs, where),
        parse_int=str,
        parse_float=str,
        parse_constant=str,
      )
    except json.JSONDecodeError as error:
      raise ValueError(
        f"{where} is not JSON: {error.msg} at its column {error.colno}. A JSONL file "
        "holds one object a line."
      ) from None
    if not isinstance(value, dict):
      raise ValueError(
        f"{where} holds a JSON {type(value).__name__}, not an object such as "
        '{"text": "...", "label": "..."}.'
      )
    yield Row(where, {key: _text(item) for key, item in value.items()})


def _object(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
  names = [name for name, _ in pairs]
  twice = sorted({name for name in names if names.count(name) > 1})
  if twice:
    raise ValueError(f"{where} has the key {twice[0]!r} twice.")
  return dict(pairs)


def _text(value: Any) -> Any:
  """Scalars as text; a list or an object stays, for `Row.get` to refuse if used."""
  if value is None:
    return ""
  return str(value) if isinstance(value, bool) else value

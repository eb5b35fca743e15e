"""Reads TSV, CSV and JSONL files, plain or gzipped, into rows of named texts.

TSV: the first line names the columns, one row a line, split on tabs. Nothing is quoted
or escaped, unless the reader is told that the file is quoted: then, and always in CSV,
fields may stand in double quotes, with tabs, commas, line breaks and doubled quotes
inside, as spreadsheets and pandas write them. JSONL: one object a line; numbers keep
their spelling, true and false become "True" and "False", null becomes "".

What lines are is said in `data.lines`. What does not fit is refused with the file and
the line, counted from 1; a row of several lines stands where it begins.
"""

import collections
import csv
import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from prompt_tuning.data.lines import MOST_LINE, Line, lines
from prompt_tuning.data.texts import no_text, short, some

KINDS = (
  ".tsv",
  ".tsv.gz",
  ".csv",
  ".csv.gz",
  ".jsonl",
  ".jsonl.gz",
  ".json",
  ".json.gz",
)
_DELIMITERS = {"tsv": "\t", "csv": ","}
_NAMES = {"tsv": "tabs", "csv": "commas"}
_RETURN = (
  "holds a carriage return without a line feed, which ends no line. Save the file with "
  "the line ends of one system."
)
_SWITCH = "`Files.quoted` = True (QUOTED in gin)"


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
  """One row: the line it stands in, its texts by column, and its number from 0."""

  where: str
  values: dict[str, str]
  number: int = 0

  def held(self, column: str, argument: str) -> Any:
    """What a column holds, lists of JSON too; raises ValueError if there is none."""
    value = self.values.get(column)
    if value is None:
      raise ValueError(
        f"{self.where}: `{argument}` asks for the column {column!r}, which there is "
        f"not. There are {some(self.values)}."
      )
    return value

  def get(self, column: str, argument: str) -> str:
    """The text of a column; `argument` says who asks, should there be none.

    Raises:
      ValueError: if there is no such column, or no text in it.
    """
    value = self.held(column, argument)
    if not isinstance(value, str):
      raise ValueError(
        f"{self.where}: the column {column!r} of `{argument}` holds {short(value)}; it "
        "must be a text, a number, true, false or null."
      )
    fault = no_text(value)
    if fault:
      raise ValueError(
        f"{self.where}: the column {column!r} of `{argument}` holds {fault}. Take it "
        "out of the file."
      )
    return value


def kind(path: str) -> str | None:
  """What a path's name says the file is: "tsv", "csv", "jsonl", or None for neither."""
  name = str(path).lower().removesuffix(".gz")
  for ending, found in ((".tsv", "tsv"), (".csv", "csv"), (".jsonl", "jsonl")):
    if name.endswith(ending):
      return found
  return "jsonl" if name.endswith(".json") else None


def read(path: str, argument: str, quoted: bool = False) -> list[Row]:
  """All rows of a file; see `rows`."""
  return list(rows(path, argument, quoted))


def rows(path: str, argument: str, quoted: bool = False) -> Iterator[Row]:
  """The rows of a file, one at a time; memory holds one.

  Args:
    path: local, or of a kind that `etils.epath` opens ("gs://...").
    argument: who names the file, for messages.
    quoted: whether fields of a TSV file may stand in double quotes. Those of a CSV file
      may without a word.

  Raises:
    ValueError: naming the file and line of what is wrong; at once for a name that says
      no kind, else as the rows are read.
  """
  found = kind(path)
  if found is None:
    raise ValueError(
      f"`{argument}` is {path!r}; its name must end in one of {', '.join(KINDS)}."
    )
  source = lines(path, argument)
  if found == "jsonl":
    return _jsonl(source)
  if found == "csv" or quoted:
    return _table(path, found, _quoted(source, found))
  return _table(path, found, _plain(source))


Fields = tuple[Line, list[str]]


def _table(path: str, found: str, source: Iterator[Fields]) -> Iterator[Row]:
  first, columns = next(source, (None, []))
  if first is None:
    raise ValueError(f"{path} is empty; line 1 must name the columns.")
  _check_header(first, columns, found)
  for number, (line, fields) in enumerate(source):
    if len(fields) != len(columns):
      raise ValueError(_count_text(line, fields, columns, found))
    yield Row(line.where, dict(zip(columns, fields, strict=True)), number)


def _check_header(line: Line, columns: Sequence[str], found: str) -> None:
  if not columns or not all(columns):
    raise ValueError(
      f"{line.where} must name the columns, separated by {_NAMES[found]}; it reads "
      f"{short(line.text)}."
    )
  twice = sorted(name for name, n in collections.Counter(columns).items() if n > 1)
  if twice:
    raise ValueError(
      f"{line.where} names the column {short(twice[0])} twice: {some(columns)}."
    )
  if found == "csv" and len(columns) == 1 and set(columns[0]) & {";", "\t"}:
    raise ValueError(
      f"{line.where} names one column, {short(columns[0])}. In a .csv file commas "
      "separate them: save it with these, or with tabs as .tsv."
    )
  if all(_in_quotes(name) for name in columns) and "\t".join(columns) == line.text:
    raise ValueError(
      f"{line.where} names its columns in quotes: {some(columns)}. Set {_SWITCH}, "
      "which takes the quotes off the fields."
    )


def _count_text(
  line: Line, fields: Sequence[str], columns: Sequence[str], found: str
) -> str:
  facts = (
    f"{line.where} has {len(fields)} fields separated by {_NAMES[found]}, but line 1 "
    f"names {len(columns)} columns: {some(columns)}."
  )
  if found == "csv":
    return f"{facts} A text that holds a comma stands in double quotes."
  if any(field.startswith('"') for field in fields):
    return f"{facts} If fields stand in double quotes, set {_SWITCH}."
  return f"{facts} A text may hold neither a tab nor a line break."


def _plain(source: Iterator[Line]) -> Iterator[Fields]:
  """Fields as they stand; says so at the end where they look quoted."""
  count, example = 0, None
  for line in source:
    if "\r" in line.text:
      raise ValueError(f"{line.where} {_RETURN}")
    fields = line.text.split("\t")
    if '"' in line.text and any(map(_in_quotes, fields)):
      count, example = count + 1, example or line
    yield line, fields
  if example:
    field = next(filter(_in_quotes, example.text.split("\t")))
    logging.warning(
      "%s: %d rows hold fields in double quotes, such as %s in line %d. The quotes are "
      "taken as part of the texts; if they are not, set %s.",
      example.path,
      count,
      short(field),
      example.number,
      _SWITCH,
    )


def _in_quotes(field: str) -> bool:
  """Whether a field reads as one that a writer of quoted tables has made."""
  if len(field) < 2 or field[0] != '"' or field[-1] != '"':
    return False
  return '"' not in field[1:-1].replace('""', "")


def _quoted(source: Iterator[Line], found: str) -> Iterator[Fields]:
  taken: list[Line] = []

  def texts() -> Iterator[str]:
    length = 0
    for line in source:
      length = len(line.text) + (length if taken else 0)
      taken.append(line)
      if length > MOST_LINE:
        raise csv.Error(f"it is longer than {MOST_LINE >> 20} MiB")
      yield line.text + "\n"

  # The limit is one of the process; it is only ever raised.
  csv.field_size_limit(max(csv.field_size_limit(), MOST_LINE))
  reader = csv.reader(texts(), delimiter=_DELIMITERS[found], strict=True)
  while True:
    taken.clear()
    try:
      fields = next(reader, None)
    except csv.Error as error:
      where = taken[0].where
      if "new-line" in str(error):
        raise ValueError(f"{where} {_RETURN}") from None
      raise ValueError(
        f"{where} begins a row whose quotes do not fit: {error}. A field in double "
        "quotes ends in one, and those inside it are doubled."
      ) from None
    if fields is None:
      return
    yield taken[0], fields


def _jsonl(source: Iterator[Line]) -> Iterator[Row]:
  for number, line in enumerate(line for line in source if line.text.strip()):
    value = _object(line)
    yield Row(line.where, {key: _text(item) for key, item in value.items()}, number)


def _object(line: Line) -> dict[str, Any]:
  def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
      counts = collections.Counter(name for name, _ in pairs)
      twice = min(name for name, count in counts.items() if count > 1)
      raise ValueError(f"{line.where} has the key {short(twice)} twice.")
    return found

  try:
    value = json.loads(
      line.text,
      object_pairs_hook=unique,
      parse_int=str,
      parse_float=str,
      parse_constant=str,
    )
  except json.JSONDecodeError as error:
    raise ValueError(
      f"{line.where} is not JSON: {error.msg} at its column {error.colno}. A JSONL "
      "file holds one object a line."
    ) from None
  except RecursionError:
    raise ValueError(
      f"{line.where} holds lists or objects within each other, too many to read. A "
      "column must be a text, a number, true, false or null."
    ) from None
  if not isinstance(value, dict):
    raise ValueError(
      f"{line.where} holds a JSON {type(value).__name__}, not an object such as "
      '{"text": "...", "label": "..."}.'
    )
  return value


def _text(value: Any) -> Any:
  """Scalars as text; a list or an object stays, for `Row.get` to refuse if used."""
  if value is None:
    return ""
  return str(value) if isinstance(value, bool) else value

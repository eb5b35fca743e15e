"""Rows of TSV, CSV and JSONL files: one at a time, quotes, lines, and odd bytes."""

import csv
import gzip
import itertools
import os
import time

import pytest

from prompt_tuning.data import lines, tables

# As `DataFrame.to_csv(sep="\t", index=False)` writes.
PANDAS = 'text\tlabel\n"He said ""fine"""\tgood\nplain\tbad\n'


@pytest.fixture
def write(tmp_path):
  def save(content, name="a.tsv"):
    data = content if isinstance(content, bytes) else content.encode("utf-8")
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return str(path)

  return save


def values(path, quoted=False):
  return [tuple(row.values.values()) for row in tables.rows(path, "FILE", quoted)]


def refused(match, path, quoted=False):
  start = time.monotonic()
  with pytest.raises(ValueError, match=match) as error:
    values(path, quoted)
  assert time.monotonic() - start < 5
  assert len(str(error.value)) < 2000
  return str(error.value)


@pytest.mark.parametrize(
  ("path", "found"),
  [
    ("a.tsv", "tsv"),
    ("gs://b/A.TSV.gz", "tsv"),
    ("a.csv.gz", "csv"),
    ("a.jsonl", "jsonl"),
    ("a.json.gz", "jsonl"),
    ("a.txt", None),
    ("tsv", None),
    ("a.gz", None),
  ],
)
def test_kinds(path, found):
  assert tables.kind(path) == found


@pytest.mark.parametrize("name", ["a.tsv", "a.csv.gz", "a.jsonl.gz"])
def test_rows_come_before_the_end_is_read(write, name):
  rows = {"a.tsv": "x\ty\n", "a.csv.gz": "x,y\n"}.get(name, '{"text": "x"}\n')
  header = "" if "json" in name else rows.replace("x", "text").replace("y", "label")
  data = (header + rows * 100_000).encode() + b"\xff\n"
  found = tables.rows(write(data, name), "FILE")
  assert [row.values["text"] for row in itertools.islice(found, 3)] == ["x"] * 3
  with pytest.raises(ValueError, match="is not UTF-8"):
    for _ in found:
      pass


# ---- quotes


def test_a_tsv_that_looks_quoted_is_said_and_read_as_it_stands(write, caplog):
  path = write(PANDAS)
  assert values(path)[0] == ('"He said ""fine"""', "good")
  (line,) = caplog.messages
  assert "1 rows" in line and "in line 2" in line and "QUOTED" in line


def test_the_switch_takes_the_quotes_off(write, caplog):
  assert values(write(PANDAS), quoted=True)[0] == ('He said "fine"', "good")
  assert not caplog.messages


@pytest.mark.parametrize("content", ['a "b" c\td\n', '"a\tb\n', 'a"\t"\n'])
def test_quotes_within_a_text_say_nothing(write, caplog, content):
  values(write("text\tlabel\n" + content))
  assert not caplog.messages


def test_a_quoted_header_asks_for_the_switch(write):
  refused("line 1 names its columns in quotes.*QUOTED", write('"text"\t"label"\n'))


def test_a_text_of_two_lines_asks_for_the_switch(write):
  refused("line 2 has 1 fields.*QUOTED", write('text\tlabel\n"a\nb"\tc\n'))


@pytest.mark.parametrize(
  ("name", "mark"), [("a.tsv", "\t"), ("a.csv", ","), ("a.csv.gz", ",")]
)
def test_what_the_csv_module_writes_is_read(tmp_path, write, name, mark):
  texts = [
    'a "b"',
    "",
    "two\nlines\n\n",
    "tab\tcomma,",
    '"',
    "\u2028\x85",
    "x" * 200_000,
  ]
  rows = list(itertools.product(texts, repeat=2))
  with open(tmp_path / "own", "w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file, delimiter=mark)
    writer.writerows([("text", "label"), *rows])
  path = write((tmp_path / "own").read_bytes(), name)
  assert values(path, quoted=True) == rows


def test_lines_are_those_of_the_file_after_fields_of_several(write):
  path = write('text,label\n"a\nb\n",c\nd,e\n"f\n\ng"\n', "a.csv")
  found = tables.rows(path, "FILE")
  assert [next(found).where.split()[-1] for _ in range(2)] == ["2", "5"]
  refused("line 6 has 1 fields separated by commas", path)


@pytest.mark.parametrize("row", ['"a,b\n', '"a"b,c\n', '"a\n' * 9])
def test_quotes_that_do_not_fit(write, row):
  refused("line 3 begins a row whose quotes", write(f"text,label\nx,y\n{row}", "a.csv"))


# ---- lines


def test_lines_end_in_line_feeds_alone(write):
  texts = "a\u2028b\x85c\x0bd"
  path = write(f"\ufefftext\tlabel\r\n{texts}\te\r\n\r\n\n")
  assert values(path) == [(texts, "e")]
  assert values(write(f'{{"text": "{texts[:-2]}"}}\r\n', "a.jsonl")) == [(texts[:-2],)]


@pytest.mark.parametrize(
  "content", ["text\tlabel\ra\tb\r", "text\na\rb\n", "text\na\r\r\n"]
)
def test_a_carriage_return_alone_is_refused(write, content):
  refused("line [12] holds a carriage return", write(content))


@pytest.mark.parametrize(
  ("number", "size"), [(1, 3), (2, lines.CHUNK), (3, 3 * lines.CHUNK)]
)
def test_lines_across_chunks(write, number, size):
  text = "\u00e9" * (size // 2) + "\r\n"
  found = list(lines.lines(write("\ufeff" + text * number + "\n\n", "a.txt"), "FILE"))
  assert [line.text + "\r\n" for line in found] == [text] * number
  assert found[-1].number == number


# ---- files


def test_only_regular_files_are_opened(tmp_path):
  (tmp_path / "folder.tsv").mkdir()
  refused("FILE.*it is a folder", str(tmp_path / "folder.tsv"))
  os.mkfifo(tmp_path / "pipe.tsv")
  refused("FILE.*a pipe or a device", str(tmp_path / "pipe.tsv"))
  (tmp_path / "device.jsonl.gz").symlink_to("/dev/zero")
  refused("FILE.*a pipe or a device", str(tmp_path / "device.jsonl.gz"))


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.tsv.gz"])
@pytest.mark.parametrize("content", ["", "\n", "\ufeff"])
def test_empty_files(write, name, content):
  refused(f"{name} is empty", write(content, name))


def test_damaged_gzip(write):
  whole = gzip.compress(PANDAS.encode())
  for data in (whole[:-9], whole[:20], b"text\n", whole[:-5] + b"xxxxx", whole + b"x"):
    path = write("", "a.tsv")[:-1] + "v.gz"
    with open(path, "wb") as file:
      file.write(data)
    refused("FILE.*no whole gzip file", path)


@pytest.mark.parametrize("text", ["text\tlabel\n", "\n", "a" * 77])
def test_a_gzip_file_that_opens_to_gigabytes(write, monkeypatch, text):
  monkeypatch.setattr(lines, "FREE_BYTES", 8 << 20)
  monkeypatch.setattr(lines, "MOST_LINE", 32 << 20)
  path = write(text * ((100 << 20) // len(text)), "a.tsv.gz")
  assert os.path.getsize(path) < 1 << 19
  refused("opens to more than 200 times its size", path)


# ---- odd shapes


def test_a_header_of_many_columns(write):
  names = "\t".join(map(str, range(100_000)))
  assert len(values(write(names + "\n" + names + "\n"))[0]) == 100_000
  refused("line 1 names the column '7' twice", write(names + "\t7\n" + names + "\n"))
  refused(r"line 2 has 1 fields.*100000 columns: .*'\.\.\.'", write(names + "\nx\n"))


def test_an_object_of_many_keys(write):
  keys = ", ".join(f'"{i}": "x"' for i in range(100_000))
  path = write(f"{{{keys}}}\n", "a.jsonl")
  (row,) = tables.rows(path, "FILE")
  with pytest.raises(ValueError, match="asks for the column 'text'") as error:
    row.get("text", "FILE")
  assert len(str(error.value)) < 2000
  refused("line 1 has the key '7' twice", write(f'{{{keys}, "7": 1}}', "a.jsonl"))


@pytest.mark.parametrize("deep", ["[" * 10_000, '{"a":' * 10_000, "[" * 900])
def test_deep_nesting(write, deep):
  shut = "]" * len(deep) if deep[0] == "[" else "1" + "}" * 10_000
  path = write(f'{{"text": "x"}}\n{{"text": {deep}{shut}}}\n', "a.jsonl")
  with pytest.raises(ValueError, match="a.jsonl line 2"):
    for row in tables.rows(path, "FILE"):
      row.get("text", "FILE")


def test_characters_that_are_none(write):
  rows = (
    '{"text": "a", "other": "\\ud83d"}\n{"text": "ab\\ud83d"}\n{"text": "\\u0000"}\n'
  )
  first, second, third = tables.rows(write(rows, "a.jsonl"), "FILE")
  assert first.get("text", "FILE") == "a"
  with pytest.raises(ValueError, match="line 2: .*'text'.*surrogate.*position 3"):
    second.get("text", "FILE")
  with pytest.raises(ValueError, match="line 3: .*'text'.*NUL.*position 1"):
    third.get("text", "FILE")
  refused("line 2 holds the character NUL", write("text\na\0b\n"))
  refused("not UTF-8: byte 0xff", write("text\na\n".encode("utf-16")))
  refused("NUL.*UTF-16", write("text\na\n".encode("utf-16-le")))

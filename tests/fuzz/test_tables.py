"""Tables changed at random: read as they stand, or refused by name, and soon.

A few cases always; PROMPT_TUNING_THOROUGH=1 runs thousands.
"""

import csv
import gzip
import io
import json
import os
import random
import signal

import fuzz_tools
import pytest

from prompt_tuning.data import files, tables

COUNT = 3000 if os.environ.get("PROMPT_TUNING_THOROUGH") else 60
SECONDS = 10
ROWS = [
  ("text", "label"),
  ("a good film", "good"),
  ("caf\u00e9 \u2028 \x85 \U0001f600", "bad"),
  ("", "good"),
  ("1.50", "0"),
  ("what, a film", "bad"),
]
TEXTS = [
  *ROWS[1:],
  ('He said "fine"', "good"),
  ("two\nlines\n\n", "bad"),
  ("a\ttab", "good"),
]
ODD = [
  b"\t", b",", b'"', b'""', b"\n", b"\r", b"\r\n", b"\0", b"\xff", b"\xed\xa0\xbd",
  b"\xef\xbb\xbf", b"\xc2\x85", b"\xe2\x80\xa8", b"\\ud83d", b"\\u0000", b"{", b"[",
  b"}", b"]", b"null", b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"[" * 3000,
  b'{"a":' * 3000, b"x" * 200_000, b'"text": 1, ', b"<prompt>", b" ", b"\\", b"\x1a",
]  # fmt: skip


def table(delimiter, rows):
  file = io.StringIO()
  csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows(rows)
  return file.getvalue().encode()


def jsonl():
  objects = [{"text": text, "label": label} for text, label in TEXTS]
  objects[0] = {"text": True, "label": None, "n": 1.5, "deep": [{"a": []}]}
  return "".join(json.dumps(o, ensure_ascii=False) + "\n" for o in objects).encode()


WHOLE = {
  "plain.tsv": "".join("\t".join(row) + "\n" for row in ROWS).encode(),
  "quoted.tsv": table("\t", [ROWS[0], *TEXTS]),
  "whole.csv": table(",", [ROWS[0], *TEXTS]),
  "whole.jsonl": jsonl(),
}


def odd(data, rng, _):
  """Something that a reader trips over, put in or in place of some bytes."""
  for _ in range(rng.randint(1, 2)):
    at, cut = rng.randrange(len(data) + 1), rng.choice([0, 0, 1, 3])
    data = data[:at] + rng.choice(ODD) + data[at + cut :]
  return data


def moved_lines(data, rng, _):
  """Lines left out, doubled, joined or in another order."""
  lines = data.split(b"\n")
  at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
  lines[at : at + 1] = rng.choice([[], [lines[at]] * 2, [lines[other]], [b""] * 3])
  return rng.choice([b"\n", b"\n", b"\r\n", b"\r", b"\n\n", b""]).join(lines)


def moved_fields(data, rng, _):
  """One separator or quote more or less."""
  marks = b'\t,":{}'
  places = [i for i, byte in enumerate(data) if byte in marks]
  if not places:
    return data
  at = rng.choice(places)
  return data[:at] + rng.choice([b"", data[at : at + 1] * 2]) + data[at + 1 :]


def recoded(data, rng, _):
  text = data.decode("utf-8", "ignore")
  return text.encode(
    rng.choice(["utf-16", "utf-16-le", "utf-32", "latin-1"]), "replace"
  )


CHANGES = [
  odd,
  odd,
  moved_lines,
  moved_fields,
  recoded,
  fuzz_tools.flip,
  fuzz_tools.truncate,
  fuzz_tools.splice,
]


def changed(data, rng, packed):
  """A changed file and, where it can be had, what it opens to."""
  for _ in range(rng.randint(1, 2)):
    data = rng.choice(CHANGES)(data, rng, None)
  if not packed:
    return data, data
  zipped = gzip.compress(data, 1, mtime=0)
  how = rng.randrange(6)
  if how == 0:
    return rng.choice(CHANGES)(zipped, rng, None), None
  if how == 1:
    return zipped + gzip.compress(data, 1, mtime=0), data * 2
  return zipped, data


def expected(name, data):
  """The rows of a file by a second way of reading it."""
  text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
  lines = [line.removesuffix("\r") for line in text.split("\n")]
  while lines and not lines[-1]:
    lines.pop()
  if "jsonl" in name:
    objects = [json.loads(line, parse_int=str, parse_float=str, parse_constant=str)
               for line in lines if line.strip()]  # fmt: skip
    return [
      {
        k: "" if v is None else str(v) if isinstance(v, bool) else v
        for k, v in o.items()
      }
      for o in objects
    ]
  if "plain" in name:
    header, *rows = [line.split("\t") for line in lines]
  else:
    mark = "," if "csv" in name else "\t"
    file = io.StringIO("\n".join(lines) + "\n", newline="")
    header, *rows = csv.reader(file, delimiter=mark, strict=True)
  return [dict(zip(header, row, strict=True)) for row in rows]


def examples(path, quoted):
  try:
    return files.Files(train=path, quoted=quoted).examples("train")
  except ValueError as error:
    assert path in str(error) and len(str(error)) < 3000 + len(path)
    return None


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", WHOLE)
def test_changed_tables(tmp_path, name, packed):
  path = str(tmp_path / (name + ".gz" * packed))
  refused = accepted = 0
  with fuzz_tools.limited():
    for number in range(COUNT):
      rng = random.Random(f"{name} {packed} {number}")
      data, opened = changed(WHOLE[name], rng, packed)
      with open(path, "wb") as file:
        file.write(data)
      signal.alarm(SECONDS)
      try:
        rows = list(tables.rows(path, "FILE", "quoted" in name))
        if opened is not None:
          assert [row.values for row in rows] == expected(name, opened)
        examples(path, "quoted" in name)
        accepted += 1
      except ValueError as error:
        assert path in str(error) and len(str(error)) < 3000 + len(path)
        assert examples(path, "quoted" in name) is None
        refused += 1
      except BaseException as error:
        raise AssertionError(f"case {number} of {name}, packed: {packed}") from error
      finally:
        signal.alarm(0)
  print(f"{name}{'.gz' * packed}: {refused} refused, {accepted} read")
  assert refused and accepted

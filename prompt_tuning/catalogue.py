"""What the library has, one row each: what it is, and what it trains.

Reads the heads of gin files as text: nothing is parsed or imported.
"""

import fnmatch
import re
from typing import Any

from prompt_tuning.engine import library
from prompt_tuning.engine.listed import Rows


def methods(pattern: str = "*") -> Rows:
  """Methods whose name fits a pattern ("ipt_*"), or whose line holds it ("decoder").

  Each has `name`, `what` and `trains`, the exact count as a formula (H: the backbone's
  width; the other letters stand in the file's head).

  >>> import prompt_tuning as pt
  >>> pt.methods("prompt_tuning")[0]["trains"]
  'P * H'
  """
  found = []
  for name, text in _files("gin/methods/"):
    row = {"name": name, "what": what(text), "trains": headed(text, "Trains")}
    found.append(row)
  return fitting(found, pattern)


def backbones(pattern: str = "*") -> Rows:
  """Backbones that have a gin file; `pt.load_model` reads others of their families too.

  >>> import prompt_tuning as pt
  >>> pt.backbones("mini")[0]["parameters"]
  6098112
  """
  found = []
  for name, text in _files("gin/backbones/"):
    count = headed(text, "Parameters")
    if count is None:
      continue
    found.append(
      {"name": name, "what": what(text), "parameters": int(count.replace(",", ""))}
    )
  return fitting(found, pattern)


def tasks(pattern: str = "*") -> Rows:
  """Tasks that have a gin file; `files` reads a TSV, CSV or JSONL of your own.

  >>> import prompt_tuning as pt
  >>> [row["name"] for row in pt.tasks("demo_s*")]
  ['demo_sentiment']
  """
  found = [{"name": n, "what": what(text)} for n, text in _files("gin/tasks/")]
  return fitting(found, pattern)


def recipes(pattern: str = "*") -> Rows:
  """Runs that are ready: name of the file, and what it is."""
  found = [{"name": n, "what": what(text)} for n, text in _files("configs/", full=True)]
  return fitting(found, pattern)


def what(text: str) -> str:
  """The first sentence of a gin file's head."""
  lines = []
  for line in text.splitlines():
    if not line.startswith("#") or lines and re.match(r"# (\w+: |  python )", line):
      break
    lines.append(line.lstrip("# "))
  words = " ".join(lines)
  first = re.match(r"(.*?[^.A-Z]\.)(?: [A-Z]|$)", words)
  return (first.group(1) if first else words).removesuffix(".")


def headed(text: str, name: str) -> str | None:
  """What stands behind `# NAME:` in a gin file's head."""
  found = re.search(rf"^# {name}: (.*)$", text, re.M)
  return found.group(1) if found else None


def _files(top: str, full: bool = False) -> list[tuple[str, str]]:
  """(name, text) of the files of a folder; with `full`, of those below it too."""
  found = []
  for path, text in library.texts().items():
    name = path.removeprefix(top)
    if path.startswith(top) and (full or "/" not in name):
      found.append((path if full else name.removesuffix(".gin"), text))
  return found


def fitting(rows: list[dict[str, Any]], pattern: str) -> Rows:
  """The rows that a pattern or a word means.

  Raises:
    ValueError: if it is no text, or means none.
  """
  if not isinstance(pattern, str):
    raise ValueError(f"`pattern` is {pattern!r}; it must be a text such as 'ipt_*'.")
  kept = [row for row in rows if fnmatch.fnmatchcase(row["name"], pattern)]
  if not kept and not re.search(r"[*?\[]", pattern):
    low = pattern.lower()
    kept = [row for row in rows if low in f"{row['name']} {row['what']}".lower()]
  if not kept:
    names = [row["name"] for row in rows]
    close = library.near(pattern, names)
    hint = f" Did you mean {close!r}?" if close else ""
    raise ValueError(
      f"Nothing here fits {pattern!r}.{hint} {len(names)} names are known."
    )
  return Rows(kept)

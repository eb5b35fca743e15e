"""The page: sections of escaped words, tables and drawings, in one file."""

import html
from collections.abc import Sequence
from typing import Any

from prompt_tuning.engine.listed import Rows, cell

# What is shown of a text in a table.
LONGEST = 400
# Columns with texts longer than this keep some width on a narrow screen.
WORDY = 24

STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 62rem; padding: 1rem; color: #1b1b1b;
  background: #ffffff; font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; border-bottom: 1px solid #ccc; }
p { margin: .5rem 0; max-width: 44rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .25rem .7rem .25rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid #e4e4e4; }
th { white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
td.text { overflow-wrap: break-word; }
td.value { overflow-wrap: anywhere; }
td.long { min-width: 13rem; overflow-wrap: anywhere; }
.beside { display: grid; gap: 1rem 2rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
@media (max-width: 30rem) { table { font-size: .8rem; }
  th, td, td.number, th.number { padding-right: .45rem; } td.long { min-width: 9rem; } }
svg { width: 100%; max-width: 34rem; height: auto; display: block; }
pre { overflow-x: auto; background: #f5f5f5; padding: .7rem; font-size: .85rem; }
"""


def page(title: str, sections: Sequence[str]) -> str:
  """One file that fetches nothing and runs nothing."""
  head = (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
    f"{MARK}\n<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
  )
  body = "\n".join([f"<h1>{html.escape(title)}</h1>", *sections])
  return f"{head}<body>\n{body}\n</body>\n</html>\n"


# How a page of ours begins, which a later one replaces.
MARK = '<meta name="generator" content="prompt_tuning.inspect">'


def section(title: str, *parts: str) -> str:
  """A heading and what stands below it; nothing where there is nothing."""
  kept = [part for part in parts if part]
  return "\n".join([f"<h2>{html.escape(title)}</h2>", *kept]) if kept else ""


def paragraph(text: str) -> str:
  return f"<p>{html.escape(text)}</p>"


def beside(*parts: str) -> str:
  """Parts side by side where there is room, below each other where not."""
  found = "".join(f"<div>{part}</div>" for part in parts if part)
  return f'<div class="beside">{found}</div>' if found else ""


def facts(rows: Sequence[tuple[str, Any]]) -> str:
  """Names and values."""
  lines = [
    f"<tr><th>{html.escape(name)}</th>"
    f'<td class="value">{html.escape(_text(value))}</td></tr>'
    for name, value in rows
    if value not in (None, "")
  ]
  return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def table(rows: Rows) -> str:
  """Rows with a head; numbers to the right."""
  if not rows:
    return ""
  numbers = {
    name: all(isinstance(row.get(name), int | float | None) for row in rows)
    for name in rows.columns
  }
  kinds = {name: "number" if flag else "text" for name, flag in numbers.items()}
  for name in rows.columns:
    if kinds[name] == "text" and any(len(_text(r.get(name))) > WORDY for r in rows):
      kinds[name] = "long"
  head = "".join(
    f'<th class="{kinds[name]}">{html.escape(name)}</th>' for name in rows.columns
  )
  lines = [
    "".join(
      f'<td class="{kinds[name]}">{html.escape(_text(row.get(name)))}</td>'
      for name in rows.columns
    )
    for row in rows
  ]
  body = "".join(f"<tr>{line}</tr>" for line in lines)
  return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _text(value: Any) -> str:
  if isinstance(value, str):
    return value if len(value) <= LONGEST else f"{value[:LONGEST]}…"
  if isinstance(value, list):
    return ", ".join(map(_text, value))
  return cell(value)

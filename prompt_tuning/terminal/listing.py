"""`prompt-tuning list`: what there is, read from the heads of gin files."""

import shutil
import sys
from collections.abc import Sequence

from prompt_tuning import catalogue
from prompt_tuning.engine import macros
from prompt_tuning.engine.listed import Rows

KINDS = ("methods", "tasks", "backbones", "recipes", "macros")
# What stands in front; the rest follows in brackets.
FIRST = ("name", "what")


def main(argv: Sequence[str]) -> None:
  """Prints one list.

  Raises:
    SystemExit: 2 for a kind or a pattern that means nothing.
  """
  try:
    if not argv or argv[0] not in KINDS or len(argv) > 2:
      given = " ".join(argv) or "nothing"
      raise ValueError(f"list takes one of {', '.join(KINDS)} and a pattern: {given}.")
    rows = listed(argv[0], *argv[1:])
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2) from error
  # Whole lines for a pipe, lines that fit for a screen.
  width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
  for line in lines(rows, width):
    print(line)


def listed(kind: str, pattern: str = "*") -> Rows:
  """The rows of a kind."""
  if kind != "macros":
    return getattr(catalogue, kind)(pattern)
  rows = [
    {
      "name": record.name,
      "what": record.meaning,
      "fits": record.type,
      "default": record.default or "",
    }
    for record in macros.table()
  ]
  return catalogue.fitting(rows, pattern)


def lines(rows: Rows, width: int | None) -> list[str]:
  """Name and what it is; behind it, where there is room, what else is known."""
  size = max(len(row["name"]) for row in rows) + 2
  found = []
  for row in rows:
    rest = [f"{name}: {_shown(row[name])}" for name in row if name not in FIRST]
    rest = [text for text in rest if not text.endswith(": ")]
    line = f"{row['name']:<{size}}{row['what']}"
    line += f"  [{'; '.join(rest)}]" if rest else ""
    found.append(
      line if width is None or len(line) <= width else line[: width - 1] + "…"
    )
  return found


def _shown(value: object) -> str:
  return f"{value:,}" if isinstance(value, int) else str(value or "")

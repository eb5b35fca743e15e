"""Numbers over all phases of a run: a file, a picture, lines on the screen."""

import io
import json
import math
from typing import Any

import numpy as np

from prompt_tuning.core import files
from prompt_tuning.procedures.phase import Table


def write(folder: Any, table: Table) -> None:
  """Writes NAME.json and NAME.png into MODEL_DIR; NaN becomes null."""
  said = {
    "rows": list(table.rows),
    "columns": list(table.columns),
    "values": [[_plain(x) for x in row] for row in np.asarray(table.values)],
    "figures": {name: _plain(value) for name, value in table.figures.items()},
    "notes": list(table.notes),
  }
  text = json.dumps(said, indent=2, allow_nan=False) + "\n"
  files.write_text(folder / f"{table.name}.json", text)
  files.write_bytes(folder / f"{table.name}.png", _drawn(table))


def text(table: Table) -> str:
  """The table for a screen: a line a row, then the figures and notes."""
  wide = max(len(str(name)) for name in ("", *table.rows))
  columns = [max(len(str(name)), 7) for name in table.columns]
  heads = zip(table.columns, columns, strict=True)
  lines = [" " * wide + "".join(f"  {name:>{n}}" for name, n in heads)]
  for name, row in zip(table.rows, np.asarray(table.values), strict=True):
    cells = zip(row, columns, strict=True)
    lines.append(f"{name:>{wide}}" + "".join(f"  {_shown(x):>{n}}" for x, n in cells))
  lines += [f"{name} {_shown(value)}" for name, value in table.figures.items()]
  return "\n".join([table.name, *lines, *table.notes])


def _plain(value: Any) -> float | None:
  return float(value) if math.isfinite(value) else None


def _shown(value: Any) -> str:
  return f"{value:.4g}" if math.isfinite(value) else "-"


def _drawn(table: Table) -> bytes:
  # Without a screen, and without touching a notebook's own figures.
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  values = np.asarray(table.values, float)
  rows, columns = values.shape
  size = (1.6 + 0.9 * columns, 1.2 + 0.5 * rows)
  figure = Figure(figsize=size, layout="constrained")
  FigureCanvasAgg(figure)
  plot = figure.subplots()
  plot.imshow(np.ma.masked_invalid(values), aspect="auto", cmap="viridis")
  plot.set_xticks(range(columns), table.columns, rotation=30, ha="right")
  plot.set_yticks(range(rows), table.rows)
  finite = values[np.isfinite(values)]
  middle = finite.mean() if finite.size else 0.0
  for i in range(rows):
    for j in range(columns):
      colour = "white" if values[i, j] < middle else "black"
      plot.text(j, i, _shown(values[i, j]), ha="center", va="center", color=colour)
  drawn = io.BytesIO()
  figure.savefig(drawn, dpi=120, format="png")
  return drawn.getvalue()

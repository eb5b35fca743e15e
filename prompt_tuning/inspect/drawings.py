"""Drawings of the page, as SVG that is written into it."""

import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from prompt_tuning.engine.curves import COLOURS, blank
from prompt_tuning.inspect.maps import Map
from prompt_tuning.inspect.numbers import Calibration, Confusion

# Longest label in a drawing, and marks that tell classes apart beside their colours.
LONGEST = 18
MARKS = "osv^DPX*<>"


def svg(figure: Any, name: str) -> str:
  """A figure as one `<svg>` element, its texts as texts, alike in every run.

  Args:
    name: makes its inner names differ from those of other drawings of the page.
  """
  import matplotlib

  drawn = io.StringIO()
  settings = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 11}
  with matplotlib.rc_context(settings):
    figure.savefig(drawn, format="svg", metadata={"Date": None})
  text = drawn.getvalue()
  text = text[text.index("<svg") :]
  text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
  text = re.sub(r'( id="|href="#|url\(#)', rf"\1{name}-", text)
  return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'role="img"', text, count=1)


def short(text: str) -> str:
  """A label that has room."""
  text = " ".join(text.split())
  return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def matrix(found: Confusion) -> Any:
  """Counts by target and prediction, the shade by the share of the target."""
  size = max(3.2, 1.6 + 0.45 * len(found.names))
  figure = blank(size + 0.6, size)
  plot = figure.subplots()
  whole = np.maximum(found.counts.sum(1, keepdims=True), 1)
  share = found.counts / whole
  # Cells and no image: a page that fetches nothing shows none.
  places = np.arange(len(found.names) + 1) - 0.5
  plot.pcolormesh(places, places, share, cmap="Blues", vmin=0, vmax=1)
  plot.set(aspect="equal", ylim=(len(found.names) - 0.5, -0.5))
  names = [short(name) for name in found.names]
  # Labels are data: a dollar sign starts no formula.
  plot.set_xticks(range(len(names)))
  plot.set_xticklabels(names, rotation=45, ha="right", parse_math=False)
  plot.set_yticks(range(len(names)))
  plot.set_yticklabels(names, parse_math=False)
  plot.set(xlabel="prediction", ylabel="target")
  for (row, column), count in np.ndenumerate(found.counts):
    ink = "white" if share[row, column] > 0.6 else "black"
    plot.text(column, row, f"{count:,}", ha="center", va="center", color=ink)
  return figure


def calibration(found: Calibration) -> Any:
  """How often answers are right, by how sure they are."""
  figure = blank(4.4, 3.6)
  plot = figure.subplots()
  plot.plot([0, 1], [0, 1], ":", color="#555555", label="as sure as right")
  plot.plot(found.sure, found.right, "o-", color=COLOURS[0], label="answers")
  plot.bar(
    found.sure,
    found.counts / found.counts.sum(),
    width=0.06,
    color=COLOURS[4],
    alpha=0.5,
    label="share of all answers",
  )
  plot.set(xlabel="probability of the answer", ylabel="share that is right")
  plot.set(xlim=(0, 1.02), ylim=(0, 1.02))
  plot.legend(fontsize=9)
  return figure


def norms(rows: Sequence[dict[str, Any]], usual: float) -> Any:
  """The length of each position's vector, beside that of a word's."""
  figure = blank(5, 3)
  plot = figure.subplots()
  places = list(dict.fromkeys(row["place"] for row in rows))
  for place, colour in zip(places, COLOURS, strict=False):
    own = [row for row in rows if row["place"] == place]
    numbers = [row["position"] for row in own]
    plot.plot(numbers, [row["norm"] for row in own], "o-", color=colour, label=place)
  plot.axhline(usual, color="#555555", linestyle=":", label="median of the words")
  most = max([usual, *(row["norm"] for row in rows)])
  plot.set(xlabel="position", ylabel="length (L2)", ylim=(0, 1.1 * most or 1))
  plot.xaxis.get_major_locator().set_params(integer=True)
  plot.legend(fontsize=9, loc="lower right")
  return figure


def points(found: Map) -> Any:
  """Each text's prompt as a point, by its label."""
  figure = blank(4.8, 4)
  plot = figure.subplots()
  names = sorted(set(found.names))
  which = np.array([names.index(name) for name in found.names])
  for k, name in enumerate(names[: len(MARKS)]):
    own = found.points[which == k]
    colour, mark = COLOURS[k % len(COLOURS)], MARKS[k]
    plot.scatter(*own.T, s=18, alpha=0.75, color=colour, marker=mark, label=short(name))
  rest = found.points[which >= len(MARKS)]
  if len(rest):
    plot.scatter(*rest.T, s=10, color="#999999", label="other labels")
  first, second = (f"{100 * share:.0f} %" for share in found.shares)
  plot.set(xlabel=f"first direction ({first})", ylabel=f"second direction ({second})")
  for text in plot.legend(fontsize=9).get_texts():
    text.set_parse_math(False)
  return figure

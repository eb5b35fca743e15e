"""Curves of a run: losses, and validation scores with the best step marked."""

from collections.abc import Sequence
from typing import Any

# What is no score of validation.
LOSSES = ("step", "split", "loss", "cross_entropy", "token_accuracy")
# Okabe and Ito's colours, told apart by all kinds of eyes: blue, vermilion, green ...
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def blank(width: float, height: float) -> Any:
  """An empty figure, without a screen and apart from a notebook's own figures."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(width, height), layout="constrained")
  FigureCanvasAgg(figure)
  return figure


def figure(
  lines: Sequence[dict[str, Any]], best: int | None = None, beside: bool = True
) -> Any:
  """The figure of lines of metrics.jsonl; None where there is nothing to draw.

  Args:
    lines: {"step", "split", "loss", ...}. best: a step to mark, or None.
    beside: losses and scores side by side, or one above the other.
  """
  losses = [line for line in lines if "loss" in line]
  if not losses:
    return None
  scored = sorted(
    {
      name
      for line in lines
      if line["split"] == "validation"
      for name in line
      if name not in LOSSES
    }
  )
  count = 1 + bool(scored)
  across, down = (count, 1) if beside else (1, count)
  made = blank(5 * across, 3.6 * down)
  plots = made.subplots(down, across, squeeze=False).ravel()
  for split, colour in zip(("train", "validation"), COLOURS, strict=False):
    rows = [line for line in losses if line["split"] == split]
    _line(plots[0], rows, "loss", split, colour)
  plots[0].set(xlabel="step", ylabel="loss (nats a target token)")
  for name, colour in zip(scored, COLOURS * len(scored), strict=False):
    _line(plots[-1], [line for line in lines if name in line], name, name, colour)
  if scored:
    plots[-1].set(xlabel="step", ylabel="validation score (%)")
  for plot in plots:
    plot.xaxis.get_major_locator().set_params(integer=True)
    if best is not None:
      plot.axvline(best, color="#555555", linestyle=":", label=f"best, step {best}")
    plot.legend()
  return made


def _line(plot: Any, rows: Sequence[Any], key: str, name: str, colour: str) -> None:
  if not rows:
    return
  steps, values = [row["step"] for row in rows], [row[key] for row in rows]
  marker = "." if len(rows) < 40 else None
  plot.plot(steps, values, marker=marker, label=name, color=colour)


def means(names: Sequence[str], each: Sequence[Sequence[float]], metric: str) -> Any:
  """Each name's scores as points, their mean and standard deviation as a bar.

  Args:
    names: one a row, the first on top. each: the scores of its seeds.
    metric: what they are.
  """
  made = blank(6.4, 1.2 + 0.4 * len(names))
  plot = made.subplots()
  for place, (scores, colour) in enumerate(
    zip(each, COLOURS * len(names), strict=False)
  ):
    mean = sum(scores) / len(scores)
    rest = max(len(scores) - 1, 1)
    spread = (sum((score - mean) ** 2 for score in scores) / rest) ** 0.5
    plot.errorbar(mean, place, xerr=spread, fmt="o", color=colour, capsize=4)
    plot.plot(scores, [place] * len(scores), "|", color="#555555")
  plot.set(yticks=range(len(names)), yticklabels=names, xlabel=metric)
  plot.set_ylim(len(names) - 0.5, -0.5)
  return made

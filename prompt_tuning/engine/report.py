"""What a run leaves to read: model-info.txt and the learning curve."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from prompt_tuning.core import files
from prompt_tuning.core import trainable as branches
from prompt_tuning.core.model import PromptedModel


def model_info(
  folder: pathlib.Path,
  model: PromptedModel,
  backbone_params: Any,
  trainable: Sequence[str],
) -> None:
  """Writes every parameter: trainable or frozen, shape, dtype, axes."""
  params = {"backbone": backbone_params}
  prompt = model.prompt_shapes(backbone_params)
  if prompt:
    params["prompt"] = prompt
  axes = {
    f"backbone/{name}": value
    for name, value in branches.flatten(model.backbone.logical_axes()).items()
  }
  trains, _ = branches.split(params, trainable)
  trained = branches.flatten(trains)
  lines = []
  for name, leaf in branches.flatten(params).items():
    kind = "trains" if name in trained else "frozen"
    shape = "x".join(map(str, leaf.shape)) or "scalar"
    named = axes.get(name)
    lines.append(
      f"{kind}  {name}  [{shape}]  {leaf.dtype}  "
      f"{'' if named is None else tuple(named)}"
    )
  total = branches.count(params)
  head = [
    f"parameters {total:,}, of which {branches.count(trains):,} train",
    f"virtual positions {model.lengths or 'none'}",
    "",
  ]
  files.write_text(folder / "model-info.txt", "\n".join([*head, *lines]) + "\n")


def learning_curve(folder: pathlib.Path) -> None:
  """Draws learning-curve.png from metrics.jsonl, if there is anything to draw."""
  path = folder / "metrics.jsonl"
  if not path.is_file():
    return
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  losses = [line for line in lines if "loss" in line]
  if not losses:
    return
  # Without a screen, and without touching a notebook's own figures.
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  scored = sorted(
    {
      name
      for line in lines
      if line["split"] == "validation"
      for name in line
      if name not in ("step", "split", "loss", "cross_entropy", "token_accuracy")
    }
  )
  figure = Figure(figsize=(5 * (1 + bool(scored)), 3.6), layout="constrained")
  FigureCanvasAgg(figure)
  plots = figure.subplots(1, 1 + bool(scored), squeeze=False)[0]
  for split in ("train", "validation"):
    rows = [line for line in losses if line["split"] == split]
    if rows:
      plots[0].plot(
        [row["step"] for row in rows],
        [row["loss"] for row in rows],
        marker="." if len(rows) < 40 else None,
        label=split,
      )
  plots[0].set(xlabel="step", ylabel="loss (nats a target token)")
  plots[0].legend()
  for name in scored:
    rows = [line for line in lines if name in line]
    plots[1].plot(
      [row["step"] for row in rows], [row[name] for row in rows], marker=".", label=name
    )
  if scored:
    plots[1].set(xlabel="step", ylabel="validation score (%)")
    plots[1].legend()
  aside = folder / ".learning-curve.tmp.png"
  figure.savefig(aside, dpi=120)
  aside.replace(folder / "learning-curve.png")

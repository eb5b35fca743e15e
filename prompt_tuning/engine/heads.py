"""Whether a head, what reads it, and the task's targets fit each other."""

from typing import Any

from prompt_tuning.core.backbone import check_writes
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.data import targets
from prompt_tuning.objectives import objective as objectives


def check(model: PromptedModel, objective: Any, output: Any, task: Any) -> None:
  """Refuses a head that learns nothing, and what reads another one or none.

  Args:
    model: with or without a head. objective: what is lowered.
    output: see `outputs/`, or None. task: `data.task.TextTask`.

  Raises:
    ValueError: naming the macros.
  """
  readers = [
    part.objective
    for part in objectives.parts(objective)
    if getattr(part.objective, "target", None) is not None
  ]
  headed = output is not None and output.headed
  if output is not None and not headed:
    check_writes(model.backbone, f"`OUTPUT` ({type(output).__name__})")
  if not readers:
    check_writes(model.backbone, f"`OBJECTIVE` ({type(objective).__name__})")
  if model.head is None:
    if readers or headed:
      what = "OBJECTIVE" if readers else "OUTPUT"
      raise ValueError(
        f"`{what}` reads a head, but `HEAD` is None. Include gin/heads/pooled.gin, or "
        "a method that brings one."
      )
    return
  if not readers:
    raise ValueError(
      "`HEAD` is given, but `OBJECTIVE` reads none, so that it would learn nothing. "
      f"Include gin/objectives/{targets.kind(task)}.gin."
    )
  for reader in readers:
    name = f"`OBJECTIVE` ({type(reader).__name__})"
    targets.check(task, reader.target, name)
  wanted = len(task.labels) if task.labels else 1
  if model.head.classes != wanted:
    raise ValueError(
      f"The head (HEAD) has {model.head.classes} classes, but the task {task.name!r} "
      f"wants {wanted}. Bind `pooled.Pooled.classes` to @pooled.count()."
    )
  if headed:
    targets.check(task, output.kind, f"`OUTPUT` ({type(output).__name__})")
    output.check(model, task.labels)


def labels(
  model: PromptedModel, objective: Any, rows: tuple[int, ...]
) -> tuple[tuple[int, ...], str]:
  """Shape and dtype of the feature `labels` of a batch.

  Args:
    rows: (B,), or (B, S) of packed rows.
  """
  found = objectives.parts(objective)
  kinds = {getattr(part.objective, "target", None) for part in found}
  if "labels" in kinds:
    return (*rows, model.head.classes), "float32"
  return rows, "int32" if "label" in kinds else "float32"

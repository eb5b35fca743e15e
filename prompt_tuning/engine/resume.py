"""What a run that goes on must know of the part before."""

from collections.abc import Callable
from typing import Any

from prompt_tuning.engine import best as kept
from prompt_tuning.engine import records
from prompt_tuning.engine.ready import Ready


def known(
  folder: Any, ready: Ready, first: int, say: Callable[[str], None]
) -> tuple[int, dict[str, float] | None, bool]:
  """Step and scores of the best so far, and whether an evaluation is owed.

  Args:
    folder: MODEL_DIR. ready: the run. first: the step that it goes on from; 0 for a new
      one. say: told of what a user would not expect.
  """
  if not first:
    return 0, None, False
  best = kept.earlier(folder, first, say)
  path = folder / "metrics.jsonl"
  lines = [line for _, line in records.read_lines(path)[0]] if path.is_file() else []
  validated = {line["step"] for line in lines if line["split"] == "validation"}
  looked = ready.validation is not None and ready.recipe.plan.keep == "best"
  if best.scores is None and looked and any(n <= first for n in validated):
    say(
      f"The product of the best step up to step {first} is gone; the best is looked "
      "for from here on."
    )
  note = _rate(lines, ready, first)
  if note:
    say(note)
  due = ready.recipe.plan.due(first, ready.recipe.plan.eval_period)
  owed = ready.validation is not None and due and first not in validated
  return best.step, None if best.scores is None else dict(best.scores), owed


def _rate(lines: list[dict[str, Any]], ready: Ready, first: int) -> str | None:
  """What to say where the rate goes on at another value than it had."""
  steps = ready.recipe.plan.steps
  rates = [
    line["learning_rate"]
    for line in lines
    if line["step"] == first and line["split"] == "train" and "learning_rate" in line
  ]
  if not rates or first >= steps:
    return None
  before, now = rates[-1], float(ready.recipe.optimizer.schedule(first))
  if abs(now - before) <= 1e-6 * max(abs(now), abs(before)):
    return None
  return (
    f"The learning rate was {before:.4g} at step {first} and goes on at {now:.4g}: its "
    f"schedule hangs on TRAIN_STEPS, which is {steps} now."
  )

"""`compare`: several methods, several seeds, one table."""

import math
import statistics
import time
from collections.abc import Sequence
from typing import Any

from prompt_tuning import arguments, scoring
from prompt_tuning.engine import curves, library
from prompt_tuning.engine.listed import Rows
from prompt_tuning.tuning import tune


class Comparison(Rows):
  """A row for each method, the best mean first; `plot()` draws means and spreads."""

  def plot(self, file: Any = None) -> Any:
    """Mean and every seed of each method, as a matplotlib figure.

    Args:
      file: where it is written too, or None.
    """
    figure = curves.means(
      [row["method"] for row in self],
      [row["each"] for row in self],
      self[0]["metric"] if self else "",
    )
    if file is not None:
      figure.savefig(file)
    return figure


def compare(
  model: Any,
  data: Any,
  methods: Sequence[str],
  seeds: int | Sequence[int] = 3,
  *,
  validation: Any = None,
  test: Any = None,
  metric: str | None = None,
  progress: bool = True,
  **options: Any,
) -> Comparison:
  """Tunes each method with each seed on the same data, and scores what came of it.

  Args:
    model: of `load_model`. data: training examples, as `train` of `tune`.
    methods: names of `gin/methods/`. seeds: how many, from 0, or which.
    validation: chooses the best step of each run, and scores it where there is no
      `test`. test: scores the prompts, once; None for `validation`.
    metric: the score that is compared; None takes the first that is no loss.
    progress: a bar for each run. **options: of `tune`, the same for all.

  Returns:
    Rows with method, metric, mean, spread (standard deviation over seeds, None for one
    seed), each (one score a seed), trained (numbers) and seconds (mean of a run).

  Raises:
    ValueError: before any run, for a method that there is not, or without examples to
      score on.

  >>> import prompt_tuning as pt
  >>> model = pt.load_model("mini")
  >>> pairs = [("a lovely film", "good"), ("a dull film", "bad")] * 4
  >>> found = pt.compare(model, pairs, ["prompt_tuning"], seeds=1, validation=pairs,
  ...   steps=1, prompt_length=4, progress=False)
  >>> found[0]["method"], found[0]["trained"], found[0]["metric"]
  ('prompt_tuning', 768, 'accuracy')
  """
  names = _names(methods)
  numbers = _seeds(seeds)
  scored = validation if test is None else test
  if scored is None:
    raise ValueError(
      "`validation` and `test` are both None: nothing would score the methods. Give "
      "examples that are not trained on."
    )
  found = Comparison()
  for name in names:
    each, trained, seconds = [], 0, []
    for seed in numbers:
      start = time.monotonic()
      prompt = tune(
        *(model, data, name, validation),
        **{"seed": seed, "progress": progress, **options},
      )
      seconds.append(time.monotonic() - start)
      trained = prompt.parameters
      read = {key: options[key] for key in ("inputs", "targets") if key in options}
      scores = scoring.evaluate(model, prompt, scored, options.get("labels"), **read)
      metric = metric or _metric(scores)
      if metric not in scores:
        raise ValueError(f"`metric` is {metric!r}; there are {sorted(scores)}.")
      each.append(scores[metric])
    found.append(
      {
        "method": name,
        "metric": metric,
        "mean": statistics.fmean(each),
        "spread": statistics.stdev(each) if len(each) > 1 else None,
        "trained": trained,
        "seconds": statistics.fmean(seconds),
        "each": each,
      }
    )
  sign = 1 if "loss" in (metric or "") else -1
  found.sort(key=lambda row: (math.isnan(row["mean"]), sign * row["mean"]))
  return found


def _names(methods: Any) -> list[str]:
  found = [methods] if isinstance(methods, str) else list(methods)
  known = library.methods()
  for name in found:
    if name not in known:
      close = library.near(str(name), known)
      hint = f" Did you mean {close!r}?" if close else ""
      raise ValueError(f"`methods` names {name!r}, which there is not.{hint}")
  if not found or len(set(found)) < len(found):
    raise ValueError(f"`methods` is {found}; name each method once, at least one.")
  return found


def _seeds(seeds: Any) -> list[int]:
  if isinstance(seeds, int) and not isinstance(seeds, bool):
    return list(range(arguments.whole("seeds", seeds, 1, 1000)))
  found = [arguments.whole("seeds", seed, 0) for seed in seeds]
  if not found:
    raise ValueError("`seeds` is empty; give a number of seeds, or which.")
  return found


def _metric(scores: dict[str, float]) -> str:
  """The first score that is the task's own; the loss where it has none."""
  own = [name for name in scores if name not in curves.LOSSES]
  return own[0] if own else "loss"

"""Scores by the metric functions that a SeqIO task was registered with.

As in `seqio.Evaluator`: the task's postprocessor reads target and prediction, then each
function of (targets, predictions) gives its scores. What fails, or asks for what an
answer does not hold, becomes one line and no score.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Raw = Mapping[str, Any]
Scores = dict[str, float]


def has_metrics(task: Any) -> bool:
  """Whether a `seqio.Task` has anything that could score answers."""
  return bool(task.predict_metric_fns or _objects(task))


def score(task: Any, examples: Sequence[Raw], predictions: Sequence[str]) -> Scores:
  """What a task's own metrics say.

  Args:
    task: a `seqio.Task`.
    examples: as the task makes them, all their features as numpy values.
    predictions: one text an example.

  Returns:
    {name: score}. A metric that raises is missing; a warning says which and why.
  """
  judge = task.postprocess_fn
  read = f"the postprocessor of the task {task.name!r}"
  for wanting in (*task.score_metric_fns, *task.predict_with_aux_metric_fns):
    what = f"The metric {_name(wanting)!r} of the task {task.name!r}"
    _say(f"{what} is left out: {_ASKS}")

  def texts() -> tuple[list[Any], list[Any]]:
    targets = [
      judge(target(task, example), example=example, is_target=True)
      for example in examples
    ]
    answers = [
      judge(prediction, example=example, is_target=False)
      for prediction, example in zip(predictions, examples, strict=True)
    ]
    return targets, answers

  scores: Scores = {}
  if task.predict_metric_fns:
    pair = _tried(texts, read)
    for metric_fn in task.predict_metric_fns if pair else ():
      # Each its own lists: a function may sort them.
      found = _tried(
        lambda f=metric_fn: _numbers(f(*map(list, pair))),
        f"the metric {_name(metric_fn)!r} of the task {task.name!r}",
      )
      scores.update(found or {})
  for metric in _objects(task):
    found = _tried(
      lambda m=metric: _computed(m, task, examples, predictions),
      f"the metric {_name(metric)!r} of the task {task.name!r}",
    )
    scores.update(found or {})
  return scores


def target(task: Any, example: Raw) -> str:
  """The text of an example's target, decoded where the task kept none."""
  text = example.get("targets_pretokenized")
  if text is None:
    ids = [int(i) for i in example["targets"]]
    return task.output_features["targets"].vocabulary.decode(ids)
  return text.decode() if isinstance(text, bytes) else str(text)


_ASKS = (
  "it reads more than the texts of answers (log-likelihoods of targets, or auxiliary "
  "values). Register one of (targets, predictions), or set METRICS."
)


def _objects(task: Any) -> list[Any]:
  """The metric objects that a task was registered with, beside its functions."""
  count = len(task.metric_objs) - len(task.metric_fns)
  return list(task.metric_objs[:count])


def _computed(
  metric: Any, task: Any, examples: Sequence[Raw], predictions: Sequence[str]
) -> Scores:
  """Scores of a metric object, which reads ids [N U] of answers, padded with 0."""
  import seqio

  if metric.model_output_type != seqio.metrics.ModelOutputType.PREDICTION:
    raise ValueError(_ASKS)
  vocabulary = task.output_features["targets"].vocabulary
  rows = [[*vocabulary.encode(text), vocabulary.eos_id or 1] for text in predictions]
  ids_NU = np.zeros((len(rows), max(map(len, rows))), np.int32)
  for row, ids in zip(ids_NU, rows, strict=True):
    row[: len(ids)] = ids
  made = metric.from_model_output(list(examples), ids_NU, task.output_features)
  if not hasattr(made, "actual_compute"):
    return _numbers(made.compute())
  return _numbers(made.actual_compute(list(examples), task.output_features)[0])


def _numbers(values: Mapping[str, Any]) -> Scores:
  """The finite numbers of what a metric gave; SeqIO's Scalar is one, its Text none."""
  found = {}
  for name, value in values.items():
    value = getattr(value, "value", value)
    if np.ndim(value) == 0 and not isinstance(value, (str, bytes)):
      try:
        found[str(name)] = float(value)
      except TypeError:
        continue
  return {name: value for name, value in found.items() if math.isfinite(value)}


def _tried(work: Callable[[], Any], what: str) -> Any:
  """What `work` gives, or None and one line where it fails: it is a user's code."""
  try:
    return work()
  except Exception as error:  # noqa: BLE001
    said = " ".join(str(error).split()) or "nothing"
    _say(f"No score from {what}, which ended in {type(error).__name__}: {said}")
    return None


def _say(text: str) -> None:
  logging.warning("%s", text)


def _name(metric: Any) -> str:
  kind = metric if hasattr(metric, "__name__") else type(metric)
  inner = getattr(metric, "func", None)  # of functools.partial
  return getattr(inner or kind, "__name__", str(metric))

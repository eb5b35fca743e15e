"""Losses, predictions and metrics of a split; each step is compiled once."""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from prompt_tuning.core.backbone import check_writes
from prompt_tuning.core.forward import Forward
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.data import batches as batching
from prompt_tuning.data import vocabularies
from prompt_tuning.data.features import Layout
from prompt_tuning.engine import members, rows, sharding
from prompt_tuning.engine.sharding import Placement
from prompt_tuning.objectives import objective as objectives

Example = dict[str, Any]

# So many examples show which names a metric gives.
FEW = 64


class Evaluator:
  """Evaluates one model on examples of one task.

  Attributes:
    model, objective, layout, vocabulary, task: as in `engine.fit`.
    output: how predictions are made (`outputs/`), or None for the loss alone.
    size: rows of a batch. place: the mesh and its rules; None for all devices.
    most: what a batch may hold; see `engine.rows.plan`.
    loss_step: the compiled (params, batch) -> the objective's terms.
    between: called before each batch; what it raises leaves the rest.
  """

  def __init__(
    self,
    model: PromptedModel,
    objective: Any,
    layout: Layout,
    vocabulary: Any,
    task: Any,
    output: Any,
    size: int,
    place: Placement | None = None,
    most: int | None = None,
  ) -> None:
    self.model, self.objective = model, objective
    self.layout, self.task, self.size = layout, task, size
    self.most = most
    self.vocabulary = vocabulary
    self.place = place or sharding.DEFAULT.over()
    self.between: Callable[[], None] = lambda: None

    def loss(params: Any, batch: Any) -> Any:
      return objectives.terms(objective, Forward(model, params, batch))

    self.loss_step = compiled(loss, self.place)
    self._labels = [member.labels for member in members.of(task)]
    self._predictors = {}
    if output is not None:
      for labels in {None if x is None else tuple(x) for x in self._labels}:
        made = predictor(model, vocabulary, labels, output, self.place)
        self._predictors[labels] = made

  def loss(self, params: Any, examples: Sequence[Example]) -> dict[str, float]:
    """Mean loss over target tokens, and the other metrics of the objective.

    The loss of each member of a mixture too, as "member/loss".
    """
    own = members.of(self.task)
    parts = {
      own[number].name: self._terms(params, [examples[i] for i in places])
      for number, places in members.by_number(examples, len(own)).items()
    }
    scores = self._means(functools.reduce(_added, parts.values()))
    for name, terms in parts.items() if len(own) > 1 else ():
      scores[f"{name}/loss"] = self._means(terms)["loss"]
    return scores

  def _terms(self, params: Any, examples: Sequence[Example]) -> Any:
    """The objective's terms, summed over examples."""
    laid_out = self.layout, self.size, self.place, self.most
    found: Any = None
    for batch, _ in device_batches(examples, *laid_out):
      self.between()
      terms = jax.tree.map(np.float64, jax.device_get(self.loss_step(params, batch)))
      found = terms if found is None else _added(found, terms)
    return found

  def _means(self, terms: Any) -> dict[str, float]:
    scores = {"loss": float(objectives.mean(self.objective, terms))}
    for name, (total, weight) in objectives.metrics(terms).items():
      scores[name] = float(total / objectives.divisor(weight))
    return scores

  def predict(self, params: Any, examples: Sequence[Example]) -> list[dict[str, Any]]:
    """One record an example, in order: `prediction` and its scores.

    Those of a mixture choose among the labels of their own task.
    """
    found: list[Any] = [None] * len(examples)
    for labels, places in members.by_labels(examples, self._labels).items():
      answer, numbers_X = self._predictors[labels], np.array(places)

      def run(batch: Any, numbers: Any) -> list[dict[str, Any]]:
        self.between()
        return answer(params, batch, numbers_X[numbers])  # noqa: B023

      own = [examples[i] for i in places]
      laid_out = self.layout, self.size, self.place, self.most
      for i, record in zip(places, in_order(run, own, *laid_out), strict=True):
        found[i] = record
    return found

  def scores(
    self,
    params: Any,
    examples: Sequence[Example],
    numbers: Sequence[int] | None = None,
    split: str = "validation",
  ) -> dict[str, float]:
    """Loss and the task's metrics.

    Args:
      params: all parameters.
      examples: of the split. numbers: which of it they are; None for all.
      split: a split of the task.
    """
    found = self.loss(params, examples)
    if self._predictors and self.task.judged:
      answers = [record["prediction"] for record in self.predict(params, examples)]
      found.update(self.task.score(answers, split, numbers))
    return found

  def check_metric(
    self,
    name: str,
    params: Any,
    examples: Sequence[Example],
    split: str = "validation",
    argument: str = "`BEST_METRIC`",
  ) -> None:
    """Raises ValueError for a score that `scores` will not give; compiles nothing.

    Args:
      name: of the score. params: arrays or their shapes. examples: of the split.
      argument: who names the score, for the message.
    """
    if name == "loss":
      return
    known = {"loss"}
    if self._predictors and self.task.judged:
      known |= self._metric_names(split, len(examples))
    if name in known:
      return
    batch, _ = next(batching.every(examples[:1], self.layout, 1))
    found = jax.eval_shape(
      lambda params, batch: objectives.terms(
        self.objective, Forward(self.model, params, batch)
      ),
      params,
      batch,
    )
    own = members.of(self.task)
    known |= set(objectives.metrics(found))
    if len(own) > 1:
      there = members.by_number(examples, len(own))
      known |= {f"{own[i].name}/loss" for i in there}
    if name not in known:
      raise ValueError(
        f"{argument} is {name!r}, but evaluation gives {sorted(known)}. Name one of "
        "these; a task's metrics need an OUTPUT (include a file of gin/outputs/)."
      )

  def _metric_names(self, split: str, count: int) -> set[str]:
    """Names that the task's metrics give, from right answers to a few examples."""
    if self.task.streams and not hasattr(self.task, "tasks"):
      rows = self.task.tokens(self.vocabulary, split, min(count, FEW))
      right = [row["targets_pretokenized"].decode() for row in rows]
      return set(self.task.score(right, split, range(len(right))))
    texts = self.task.examples(split)
    seen: dict[int, int] = {}
    few = []
    for number, example in enumerate(texts):  # some of each task, where there are many
      owner = example.get("task", 0)
      seen[owner] = seen.get(owner, 0) + 1
      few += [number] if seen[owner] <= FEW else []
    return set(self.task.score([texts[i]["targets"] for i in few], split, few))


def _added(one: Any, other: Any) -> Any:
  return jax.tree.map(operator.add, one, other)


def compiled(function: Callable[..., Any], place: Placement) -> Callable[..., Any]:
  """A jitted function of (params, batch, ...) whose results are whole everywhere."""
  return jax.jit(place.traced(function), out_shardings=place.replicated)


def device_batches(
  examples: Sequence[Example],
  layout: Layout,
  size: int,
  place: Placement,
  most: int | None = None,
) -> Any:
  """(batch on the devices, numbers of its examples); see `engine.rows.plan`."""
  size += -size % place.rows
  for one in rows.plan(examples, layout, size, most, place.rows):
    chosen = [examples[i] for i in one.numbers]
    batch = batching.filled(chosen, one.layout, place.own_rows(one.size))
    yield place.put(batch, one.size), one.numbers


def in_order(
  run: Callable[[Any, Any], Sequence[Any]],
  examples: Sequence[Example],
  layout: Layout,
  size: int,
  place: Placement | None = None,
  most: int | None = None,
) -> list[Any]:
  """What `run(batch, numbers)` says of each row, in the order of the examples.

  `numbers` [B] are those of the batch's examples; at rows that only fill up, the last.
  `size` and `most` say how many rows a batch has, see `engine.rows.plan`.
  """
  found: list[Any] = [None] * len(examples)
  place = place or sharding.DEFAULT.over()
  for batch, numbers in device_batches(examples, layout, size, place, most):
    count = len(batch["inputs"])
    all_rows = np.array(numbers + [numbers[-1]] * (count - len(numbers)))
    for number, value in zip(numbers, run(batch, all_rows), strict=False):
      found[number] = value
  return found


def predictor(
  model: PromptedModel,
  vocabulary: Any,
  labels: Sequence[str] | None,
  output: Any,
  place: Placement | None = None,
) -> Callable[[Any, Any, Any], list[dict[str, Any]]]:
  """(params, batch, numbers) -> one record a row, for a setting of `outputs/`.

  `numbers` [B] count the examples: what is drawn depends on the seed and an example's
  number, not on how examples fall into batches.

  Raises:
    ValueError: if the output does not fit the model or the labels.
  """
  if not output.headed:
    check_writes(model.backbone, f"`OUTPUT` ({type(output).__name__})")
  output.check(model, labels)
  encode = functools.partial(vocabularies.encode, vocabulary)
  decode = functools.partial(vocabularies.decode, vocabulary)
  place = place or sharding.DEFAULT.over()
  run = compiled(output.program(model, labels, encode), place)

  def predict(params: Any, batch: Any, numbers: Any) -> list[dict[str, Any]]:
    arrays = jax.device_get(run(params, batch, numbers))
    return output.records(arrays, labels, decode, model.backbone.spec.ids)

  return predict

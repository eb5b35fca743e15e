"""Phases that measure: one pass over a split, jitted, without updates."""

import functools
from typing import Any

import jax
import numpy as np

from prompt_tuning.core.forward import Forward
from prompt_tuning.engine import examples, interrupt, sharding, terms
from prompt_tuning.engine.evaluate import Evaluator, device_batches
from prompt_tuning.engine.ready import Begin, initial_params
from prompt_tuning.engine.sentence import Sentence
from prompt_tuning.objectives import objective as objectives
from prompt_tuning.procedures.measure import Exam, Measure, Probe

Outcome = tuple[dict[str, np.ndarray], dict[str, float]]


def measured(
  sentence: Sentence, measure: Any, begin: Begin | None, told: interrupt.Told
) -> Outcome:
  """(arrays, scores) of a phase that measures.

  Raises:
    UnfinishedError: if it was told to end meanwhile; nothing of it is kept.
  """
  model = sentence.model
  recipe, words = sentence.recipe, sentence.loaded.vocabulary
  params = initial_params(model, sentence.loaded.params, words, recipe.seed)
  if begin is not None:
    params = begin(params)
  place = recipe.sharding.over()
  sharding.check_batch(recipe.eval_batch_size, 1, place, "EVAL_BATCH_SIZE")
  params = place.params(model, params)
  one = functools.partial(_between, told)
  if isinstance(measure, Exam):
    return {}, _examined(sentence, measure, params, place, one)
  return _summed(sentence, measure, params, place, one), {}


def _between(told: interrupt.Told) -> None:
  if told(0):
    raise interrupt.UnfinishedError


def _examined(
  sentence: Sentence, exam: Exam, params: Any, place: Any, between: Any
) -> dict[str, float]:
  words, recipe = sentence.loaded.vocabulary, sentence.recipe
  model = sentence.alone
  asked = terms.answering(recipe.objective)
  found = {}
  for name, task in exam.tasks.items():
    rows = examples.read(task, words, exam.split)
    evaluator = Evaluator(
      model,
      terms.bound(asked, words, task),
      sentence.reading.layout(model),
      words,
      task,
      sentence.output,
      min(recipe.eval_batch_size, len(rows)),
      place,
    )
    evaluator.between = between
    for metric, value in evaluator.scores(params, rows, split=exam.split).items():
      found[f"{name}/{metric}"] = float(value)
  return found


def _summed(
  sentence: Sentence, measure: Measure, params: Any, place: Any, between: Any
) -> dict[str, np.ndarray]:
  model, task = sentence.alone, sentence.task
  words = sentence.loaded.vocabulary
  # What a prompt alone can tell: a measurement has neither teachers nor critics.
  objective = terms.answering(sentence.recipe.objective)
  objective = terms.bound(objective, words, task)

  def loss(params: Any, batch: Any) -> Any:
    found = objectives.terms(objective, Forward(model, params, batch))
    counts = objectives.counts(objective, batch, model.backbone.spec.ids)
    return objectives.total(objective, found, counts), found[0].weight

  def add(total: Any, params: Any, batch: Any, weight_B: Any) -> Any:
    return measure.add(total, Probe(model, params, loss), batch, weight_B)

  run = jax.jit(place.traced(add), out_shardings=place.replicated)
  total = measure.init(Probe(model, params, loss))
  rows = examples.read(task, words, measure.split, measure.limit)
  layout, size = sentence.reading.layout(model), sentence.recipe.eval_batch_size
  for batch, numbers in device_batches(rows, layout, size, place):
    between()
    weight_B = np.zeros(len(batch["inputs"]), np.float32)
    weight_B[: len(numbers)] = 1
    total = run(total, params, batch, weight_B)
  found = measure.finish(jax.tree.map(np.asarray, place.fetch(total)))
  return {name: np.asarray(value) for name, value in found.items()}

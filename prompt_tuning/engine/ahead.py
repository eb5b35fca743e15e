"""What a run of several phases is refused for before its first phase."""

import dataclasses
from typing import Any

from prompt_tuning.core.model import PromptedModel
from prompt_tuning.engine.evaluate import Evaluator
from prompt_tuning.engine.examples import validation_part
from prompt_tuning.engine.sentence import Sentence
from prompt_tuning.objectives.cross_entropy import CrossEntropy
from prompt_tuning.procedures.phase import OWN, Procedure


def check(procedure: Procedure, sentence: Sentence) -> None:
  """Draws no number, compiles nothing and writes nothing.

  Raises:
    ValueError: for a first prompt that cannot be drawn, or a score that a later phase
      asks for and its task does not give.
  """
  first = procedure.next(())
  if first is None:
    raise ValueError("The procedure has no phase at all, so there is no run.")
  shapes = sentence.loaded.backbone.held_shapes()
  own = sentence.alone
  prompt = own.prompt if first.prompt == OWN else first.prompt
  model = dataclasses.replace(own, prompt=prompt)
  drawn = model.prompt_shapes(shapes)
  params = {"backbone": shapes, **({"prompt": drawn} if drawn else {})}
  for argument, task, score in procedure.scores():
    task = sentence.task if task is None else task
    score = sentence.recipe.plan.metric if score is None else score
    _check_score(sentence, model, params, argument, task, score)


def _check_score(
  sentence: Sentence,
  model: PromptedModel,
  params: Any,
  argument: str,
  task: Any,
  score: str,
) -> None:
  # What other objectives tell of themselves hangs on branches of their own.
  plain = isinstance(sentence.recipe.objective, CrossEntropy)
  if score == "loss" or not plain or "validation" not in task.splits:
    return
  recipe, words = sentence.recipe, sentence.loaded.vocabulary
  layout, place = sentence.reading.layout(model), recipe.sharding.over()
  part = validation_part(task, words, recipe.eval_examples)
  given = task, sentence.output, 1, place
  evaluator = Evaluator(model, recipe.objective, layout, words, *given)
  evaluator.check_metric(score, params, part.examples, argument=argument)

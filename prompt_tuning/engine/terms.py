"""What an objective brings into a run: words, weights of its own, teachers."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax

from prompt_tuning.core import describe
from prompt_tuning.core import trainable as branches
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.data import vocabularies
from prompt_tuning.objectives import objective as objectives
from prompt_tuning.objectives.cross_entropy import CrossEntropy

BRANCH, TEACHERS = "objective", "teacher"
_ALLOWED = describe.Allowed(
  ("prompt_tuning.objectives",),
  (objectives.Objective, objectives.Weighted),
  "a term of an objective",
)


def said(objective: Any) -> Any:
  """What a card says of an objective; None for one that is not plain data."""
  try:
    return describe.describe(objective)
  except ValueError:
    return None


def of(card: Mapping[str, Any]) -> Any:
  """The objective that a card says, or cross-entropy where it says none.

  Raises:
    ValueError: for what is no objective.
  """
  data = card.get("objective")
  return CrossEntropy() if data is None else describe.rebuild(data, _ALLOWED)


def bound(objective: Any, vocabulary: Any, task: Any) -> Any:
  """The objective, told of the vocabulary and the labels of the task.

  Raises:
    ValueError: for what is no objective, or one that the task does not fit.
  """
  if not isinstance(objective, (objectives.Objective, objectives.Weighted)):
    raise ValueError(
      f"`OBJECTIVE` is {objective!r}; it must be a term of `objectives/`, such as "
      "cross_entropy.CrossEntropy(), or objective.Weighted of several."
    )
  encode = functools.partial(vocabularies.encode, vocabulary)
  words = objectives.Words(encode, vocabulary.eos_id)
  return objectives.bound(objective, words, task.labels)


def answering(objective: Any) -> Any:
  """The objective of a run that trains nothing: what a prompt alone can tell."""
  return objectives.alone(objective) or CrossEntropy()


def branch(objective: Any, model: PromptedModel, params: Any, seed: int) -> Any:
  """{"objective": its own weights}, drawn; empty where it has none."""
  key = jax.random.fold_in(jax.random.key(seed), 2)
  found = objectives.owned(objective, key, model, params)
  return {BRANCH: found} if found else {}


def check_teachers(objective: Any, model: PromptedModel) -> None:
  """Raises ValueError for a teacher that is missing, idle, or has other positions."""
  asked = objectives.teachers(objective)
  for name in sorted(asked):
    if name not in model.teachers:
      raise ValueError(
        f"`OBJECTIVE` learns from the teacher {name!r}, but TEACHERS names "
        f"{sorted(model.teachers)}. Set TEACHERS = {{{name!r}: 'its/prompt'}}."
      )
  for name in model.teachers:
    if name not in asked:
      raise ValueError(
        f"`TEACHERS` names {name!r}, but OBJECTIVE learns from "
        f"{sorted(asked)}. Include gin/objectives/distil.gin, or leave it out."
      )
  for name, prompt in model.teachers.items():
    theirs = {} if prompt is None else prompt.lengths
    if theirs != model.lengths:
      raise ValueError(
        f"`TEACHERS` names {name!r}, a prompt of the positions {theirs}; the one that "
        f"trains has {model.lengths}. Give both the same PROMPT_LENGTH and places."
      )


def check_traces(objective: Any, model: PromptedModel) -> None:
  """Raises ValueError for what a term reads of a backbone that does not give it."""
  known = getattr(model.backbone, "traces", ())
  for part in objectives.parts(objective):
    for name in part.objective.traces:
      if name not in known:
        raise ValueError(
          f"`OBJECTIVE` reads {name!r} of the backbone, which gives "
          f"{list(known) or 'nothing of its inside'}. Set DISTIL_LAYERS = 'out'."
        )


def with_teachers(
  model: PromptedModel, products: Mapping[str, Any]
) -> tuple[PromptedModel, dict[str, Any]]:
  """The model with prompts that teach, and the branch of their parameters.

  Args:
    products: name -> `engine.product.Product`.
  """
  if not products:
    return model, {}
  modules, held = {}, {}
  for name, one in products.items():
    own = branches.unflatten({**branches.flatten(one.frozen), **_of_prompt(name, one)})
    modules[name], held[name] = one.module, own.get("prompt", {})
  return dataclasses.replace(model, teachers=modules), {TEACHERS: held}


def _of_prompt(name: str, product: Any) -> dict[str, Any]:
  found = branches.flatten(product.trainable)
  if product.module is None or any(
    not branches.within(path, "prompt") for path in found
  ):
    raise ValueError(
      f"`TEACHERS` names {name!r}, which is no prompt: weights of a backbone were "
      "trained there. Name a prompt on the backbone of this run."
    )
  return found

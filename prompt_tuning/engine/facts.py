"""What a run's product is, and what its card says of how it came about."""

from typing import Any

import jax

import prompt_tuning
from prompt_tuning.core import trainable as branches
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.data.features import Layout
from prompt_tuning.engine import conventions, loop, members, product, terms
from prompt_tuning.engine.recipe import Recipe


def card_facts(
  loaded: Any,
  method: str,
  layout: Layout,
  task: Any,
  configuration: str = "",
  output: Any = None,
  recipe: Recipe | None = None,
) -> dict[str, Any]:
  """What a product's card says, but for step and scores."""
  repeat: dict[str, Any] = {}
  if recipe is not None:
    repeat = {"seed": recipe.seed, "steps": recipe.plan.steps}
    repeat["objective"] = terms.said(recipe.objective)
  return {
    "method": method,
    "layout": layout.said,
    **conventions.said(task, output),
    "backbone": {
      "name": loaded.name,
      "fingerprint": loaded.fingerprint,
      "width": loaded.backbone.spec.width,
      "family": loaded.backbone.family,
      "architecture": loaded.backbone.architecture,
    },
    "task": {
      "name": task.name,
      "labels": None if task.labels is None else list(task.labels),
      "metrics": list(task.metrics),
      "tasks": members.said(task),
    },
    "gin": configuration,
    **repeat,
    "versions": {
      "library": prompt_tuning.__version__,
      "jax": jax.__version__,
    },
  }


def product_of(
  model: PromptedModel, params: Any, trained: Any, card: dict[str, Any], best: loop.Best
) -> product.Product:
  """The product of a run: trained branches, and what of the prompt stayed fixed."""
  trained = {name: tree for name, tree in trained.items() if name != terms.BRANCH}
  names = set(branches.flatten(trained))
  fixed = {
    name: value
    for name, value in branches.flatten(
      {branch: params.get(branch, {}) for branch in ("prompt", "head")}
    ).items()
    if name not in names
  }
  scores = {name: float(value) for name, value in (best.scores or {}).items()}
  card = {**card, "step": best.step, "scores": scores}
  fixed = branches.unflatten(fixed)
  return product.Product(model.prompt, trained, card, fixed, model.head)

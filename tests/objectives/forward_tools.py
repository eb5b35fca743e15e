"""Loss, gradient and terms of an objective."""

import jax
import method_tools as tools

from prompt_tuning.core import trainable as branches
from prompt_tuning.core.forward import Forward
from prompt_tuning.objectives import objective as objectives

LABELS = ("ab", "c", "cda")
WORDS = objectives.Words(tools.encode, 1)


def run(objective, model, params, batch, key=None):
  """(loss, gradient in the prompt, terms)."""
  trains, frozen = branches.split(params, ("prompt", "objective"))

  def loss(trains):
    forward = Forward(model, branches.merge(trains, frozen), batch, key)
    found = objectives.terms(objective, forward)
    return objectives.mean(objective, found), found

  (value, found), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(trains)
  return float(value), gradient, found

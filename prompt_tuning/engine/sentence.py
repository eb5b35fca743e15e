"""One sentence of a run: what trains on what, how; and what follows from it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from prompt_tuning.core import trainable as branches
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.engine import abstract, fit, identity
from prompt_tuning.engine.facts import card_facts
from prompt_tuning.engine.ready import Begin, Ready
from prompt_tuning.engine.recipe import Reading, Recipe


@dataclasses.dataclass(frozen=True)
class Sentence:
  """Attributes:
  loaded: backbone, weights and vocabulary (`interop.load.Loaded`).
  task: `data.task.TextTask`. method: a name for the card.
  prompt: `core.prompt.Prompt`, or None. reading: how examples become rows.
  recipe: numbers and choices. output: how predictions are made, or None.
  configuration: all of it, as text.
  judge: the task whose validation split chooses the best; None for `task`.
  teachers: name -> product that the objective learns from.
  head: a module of `heads/`, or None.
  """

  loaded: Any
  task: Any
  method: str
  prompt: Any
  reading: Reading
  recipe: Recipe
  output: Any
  configuration: str
  judge: Any = None
  teachers: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  head: Any = None

  @property
  def model(self) -> PromptedModel:
    """Backbone and prompt as they train."""
    # The rate holds for a backbone that states its own, too.
    recast = self.loaded.backbone.recast(dropout_rate=self.recipe.dropout_rate)
    segments = self.recipe.pack_segments
    return PromptedModel(recast, self.prompt, segments, head=self.head)

  @property
  def alone(self) -> PromptedModel:
    """The same with one example a row, as it is evaluated."""
    return dataclasses.replace(self.model, segments=1)

  def ready(self, begin: Begin | None = None) -> Ready:
    """The run, its data read and its parts checked; see `engine.ready.prepare`."""
    model = self.model
    made = fit.prepare(
      model,
      self.loaded.params,
      self.loaded.vocabulary,
      self.task,
      self.reading.layout(model),
      self.recipe,
      self.output,
      self.teachers,
      begin,
      self.judge,
    )
    abstract.check_objective(made)
    return made

  def hangs_on(self) -> identity.Identity:
    """Data, backbone and vocabulary, see `engine.identity`."""
    trains = self.recipe.plan.steps > 0
    found = identity.of(self.loaded, self.task, self.loaded.vocabulary, trains)
    if not self.teachers:
      return found
    taught = {
      f"{name}/{path}": leaf
      for name, one in self.teachers.items()
      for path, leaf in branches.flatten({**one.frozen, **one.trainable}).items()
    }
    return {**found, "teachers": identity.arrays(taught)}

  def facts(self, made: Ready) -> dict[str, Any]:
    """What the product's card says, but for step and scores."""
    return card_facts(
      self.loaded,
      self.method,
      made.layout,
      self.task,
      self.configuration,
      self.output,
      self.recipe,
    )

"""One pass of a batch through a prompted model, shared by all that read it.

Each result is computed when it is first asked for, and once: objectives that stand
side by side read one pass of the backbone, and what none of them reads is not computed.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from prompt_tuning.core.backbone import check_writes, prompt_key
from prompt_tuning.core.context import of_each
from prompt_tuning.core.ids import Ids
from prompt_tuning.core.injection import Injection
from prompt_tuning.core.model import Batch, Params, PromptedModel


class Forward:
  """What objectives read.

  Attributes:
    model: backbone and prompt. params: all branches, see `core.model`.
    batch: features. key: for dropout and other noise; None where nothing is drawn.
    asked: which of the backbone's `traces` terms will read; said before the pass.
  """

  asked: frozenset[str] = frozenset()

  def __init__(
    self, model: PromptedModel, params: Params, batch: Batch, key: Any = None
  ) -> None:
    self.model, self.params, self.batch, self.key = model, params, batch, key
    self._teachers: dict[str, Forward] = {}

  @functools.cached_property
  def _prompted(self) -> tuple[Injection | None, dict[str, Any]]:
    key = None if self.key is None else prompt_key(self.key)
    return self.model.prompted(self.params, self.batch, key)

  def fresh_key(self, name: str) -> Any:
    """A key of a term's own, by a number that its name gives; None where none is."""
    if self.key is None:
      return None
    return jax.random.fold_in(self.key, sum(map(ord, name)) + 2)

  @property
  def injection(self) -> Injection | None:
    """What the prompt hands back; None without one."""
    return self._prompted[0]

  @property
  def aux(self) -> dict[str, Any]:
    """What words sowed as "aux" beside their prompt: path of the word -> values."""
    return self._prompted[1]

  @property
  def ids(self) -> Ids:
    """Which ids are no words."""
    return self.model.backbone.spec.ids

  @functools.cached_property
  def real(self) -> Bool[Array, "B U"]:
    """True at the targets that are no padding; of an encoder, at the inputs."""
    return self.ids.is_real(self.batch[_rows(self.batch)[0]])

  @functools.cached_property
  def _traced(self) -> tuple[tuple[Array, Any], dict[str, Array]]:
    check_writes(self.model.backbone, "`OBJECTIVE`")
    given = self.params["backbone"], self.batch, self.injection, self.key
    if self.asked:
      return self.model.backbone.traced(*given)
    return self.model.backbone.run(*given), {}

  @property
  def _run(self) -> tuple[Array, Any]:
    return self._traced[0]

  def trace(self, name: str) -> Float[Array, "L B X F"]:
    """What happens in every layer, by one of the names of `asked`."""
    return self._traced[1][name]

  @property
  def states(self) -> Float[Array, "B U H"]:
    """The last states at every target position, from which logits are made."""
    return self._run[0]

  @functools.cached_property
  def reading(self) -> Any:
    """What the backbone made of the inputs (`core.backbone.Reading`)."""
    if "targets" in self.batch:
      return self._run[1]
    # By an encoder, or as it is served, where nothing is to be written.
    noise = {} if self.key is None else {"key": self.key}
    given = self.params["backbone"], self.batch, self.injection
    return self.model.backbone.read(*given, **noise)

  @property
  def encoded(self) -> tuple[Float[Array, "B T H"], Bool[Array, "B T"]]:
    """The last states of the inputs, and which of them may be read."""
    return self.reading.states, self.reading.mask

  def logits(self, states: Float[Array, "*X H"]) -> Float[Array, "*X V"]:
    """float32 logits of some of `states`; they are made anew for each call."""
    return self.model.backbone.logits(self.params["backbone"], states)

  @functools.cached_property
  def seen(self) -> Array:
    """What the head reads of the backbone, such as [R H]; see `core.model`."""
    model, weights = self.model, self.params["backbone"]
    given = self.batch, self.reading, self.injection, self.key
    rows = model.lengths.get("decoder", 0), model.segments
    return model.backbone.view(weights, model.head.view, *given, *rows)

  @functools.cached_property
  def head(self) -> Array:
    """What the head says, such as logits [R C] of each example."""
    seen = self.seen if self.model.head is not None else None
    return self.model.headed(self.params, seen, self.fresh_key("head"))

  def continued(self, targets_BU: Int[Array, "B U"]) -> Float[Array, "B U H"]:
    """The last states of other targets after the same inputs, one example a row."""
    weights, key = self.params["backbone"], self.key
    given = self.reading, targets_BU, self.injection, key
    return self.model.backbone.continued(weights, *given)

  @functools.cached_property
  def examples(self) -> Bool[Array, " R"]:
    """True where a row, or a segment of one, holds an example."""
    return examples(self.batch, self.ids, self.model.segments)

  @functools.cached_property
  def _own_targets(self) -> Bool[Array, "B S U"]:
    """Which target positions are those of each example of a row."""
    own_BSU = self.real[:, None]
    if self.model.segments > 1:
      own_BSU &= of_each(self.batch["decoder_segment_ids"], self.model.segments)
    return own_BSU

  @functools.cached_property
  def first(self) -> Float[Array, "R H"]:
    """The last state at each example's first target; of no example, some state."""
    first_BS1 = self._own_targets.argmax(-1)[..., None]
    states_BSH = jnp.take_along_axis(self.states, first_BS1, axis=1)
    return states_BSH.reshape(-1, states_BSH.shape[-1])

  def unprompted(self) -> "Forward":
    """The same batch and no prompt, without gradient or noise.

    Reserved positions stay where they are, as pads: distances between tokens of a text
    are what matters to them, and those are the same.
    """
    batch = dict(self.batch)
    for ids, index in (
      ("inputs", "prompt_index"),
      ("decoder_inputs", "decoder_prompt_index"),
    ):
      if index in batch:
        batch[ids] = jnp.where(batch[index] >= 0, self.ids.pad, batch[ids])
    model = dataclasses.replace(self.model, prompt=None, teachers={})
    params = {"backbone": jax.lax.stop_gradient(self.params["backbone"])}
    return Forward(model, params, batch)

  def own(self, name: str) -> Any:
    """Parameters of the objective of that name: the branch `objective/NAME`."""
    return self.params["objective"][name]

  def teacher(self, name: str) -> "Forward":
    """The same batch under the prompt `teacher/NAME`, without gradient or noise."""
    if name not in self._teachers:
      model, params = self.model.taught(self.params, name)
      params = jax.lax.stop_gradient(params)
      self._teachers[name] = Forward(model, params, self.batch)
      self._teachers[name].asked = self.asked
    return self._teachers[name]


def _rows(batch: Batch) -> tuple[str, str]:
  """Which ids say where there is an example, and which numbers whose they are."""
  if "targets" in batch:
    return "targets", "decoder_segment_ids"
  return "inputs", "segment_ids"


def examples(batch: Batch, ids: Ids, segments: int) -> Bool[Array, " R"]:
  """True where there is an example, and no row that fills up or empty segment.

  Args:
    batch: features, those of targets where words are written. ids: of the family.
    segments: S, of packed rows.
  """
  name, numbers = _rows(batch)
  real_BX = ids.is_real(batch[name])
  if numbers not in batch:
    return real_BX.any(-1)
  own_BSX = of_each(batch[numbers], segments) & real_BX[:, None]
  return own_BSX.any(-1).reshape(-1)

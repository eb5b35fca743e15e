"""One pass of a batch through a prompted model, shared by all that read it.

Each result is computed when it is first asked for, and once: objectives that stand
side by side read one pass of the backbone, and what none of them reads is not computed.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from prompt_tuning.core.injection import Injection
from prompt_tuning.core.model import Batch, Params, PromptedModel


class Forward:
  """What objectives read.

  Attributes:
    model: backbone and prompt. params: all branches, see `core.model`.
    batch: features. key: for dropout and other noise; None where nothing is drawn.
  """

  def __init__(
    self, model: PromptedModel, params: Params, batch: Batch, key: Any = None
  ) -> None:
    self.model, self.params, self.batch, self.key = model, params, batch, key

  @property
  def train(self) -> bool:
    """Whether something is drawn."""
    return self.key is not None

  @functools.cached_property
  def _keys(self) -> tuple[Any, Any, Any]:
    """Keys of the prompt, the encoder and the decoder."""
    if self.key is None:
      return None, None, None
    encode_key, decode_key = jax.random.split(self.key)
    return (*jax.random.split(encode_key), decode_key)

  def fresh_key(self, name: str) -> Any:
    """A key of a term's own, by a number that its name gives; None where none is."""
    if self.key is None:
      return None
    return jax.random.fold_in(self.key, sum(map(ord, name)) + 2)

  @functools.cached_property
  def _prompted(self) -> tuple[Injection | None, dict[str, Any]]:
    return self.model.prompted(self.params, self.batch, self._keys[0])

  @property
  def injection(self) -> Injection | None:
    """What the prompt hands back; None without one."""
    return self._prompted[0]

  @property
  def aux(self) -> dict[str, Any]:
    """What words sowed as "aux" beside their prompt: path of the word -> values."""
    return self._prompted[1]

  @functools.cached_property
  def encoded(self) -> tuple[Float[Array, "B T H"], Bool[Array, "B T"]]:
    """The encoder's last states, and which of them the decoder may attend to."""
    return self.model.backbone.encode(
      self.params["backbone"], self.batch, self.injection, self._keys[1]
    )

  @functools.cached_property
  def states(self) -> Float[Array, "B U H"]:
    """The last states at every target position, from which logits are made."""
    return self.model.backbone.states(
      self.params["backbone"],
      self.batch,
      *self.encoded,
      self.injection,
      self._keys[2],
    )

  def logits(self, states: Float[Array, "*X H"]) -> Float[Array, "*X V"]:
    """float32 logits of some of `states`; they are made anew for each call."""
    return self.model.backbone.logits(self.params["backbone"], states)

  def continued(self, targets: Batch) -> Float[Array, "B U H"]:
    """The last states of other targets after the same inputs, read once.

    Args:
      targets: `targets`, `decoder_inputs` and `decoder_prompt_index` [B U], one example
        a row.
    """
    return self.model.backbone.states(
      self.params["backbone"], targets, *self.encoded, self.injection, self._keys[2]
    )

  @functools.cached_property
  def examples(self) -> Bool[Array, " R"]:
    """True where a row, or a segment of one, holds an example with targets."""
    return self._own_targets.any(-1).reshape(-1)

  @functools.cached_property
  def _own_targets(self) -> Bool[Array, "B S U"]:
    """Which target positions are those of each example of a row."""
    targets_BU = self.batch["targets"]
    own_BSU = (targets_BU > 0)[:, None]
    if self.model.segments > 1:
      numbers_S = jnp.arange(1, self.model.segments + 1)[None, :, None]
      own_BSU &= self.batch["decoder_segment_ids"][:, None] == numbers_S
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
        batch[ids] = jnp.where(batch[index] >= 0, 0, batch[ids])
    model = dataclasses.replace(self.model, prompt=None, teachers={})
    params = {"backbone": jax.lax.stop_gradient(self.params["backbone"])}
    return Forward(model, params, batch)

  def own(self, name: str) -> Any:
    """Parameters of the objective of that name: the branch `objective/NAME`."""
    return self.params["objective"][name]

  def teacher(self, name: str) -> "Forward":
    """The same batch under the prompt `teacher/NAME`, without gradient or noise."""
    kept = self.__dict__.setdefault("_teachers", {})
    if name not in kept:
      model, params = self.model.taught(self.params, name)
      params = jax.lax.stop_gradient(params)
      kept[name] = Forward(model, params, self.batch)
    return kept[name]

"""Which positions of a row are of one example, who sees whom, and where each stands.

A row is [inputs T][decoder_inputs U] (`core.format.Causal`): the last token of an input
opens the second piece, so that its copy in the first is read by prompts and heads, and
hidden from all other positions.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from prompt_tuning.backbones.common import layered, texts
from prompt_tuning.core import injection as inject
from prompt_tuning.core.ids import Ids
from prompt_tuning.core.injection import Injection


class Rows(NamedTuple):
  """Attributes:
  group: 1..S, which example of its row a position is of; 0 at pads [B X].
  seen: true where others may read it [B X].
  """

  group: Int[Array, "B X"]
  seen: Bool[Array, "B X"]

  def beside(self, other: "Rows") -> "Rows":
    """Both pieces of a row."""
    pairs = zip(self, other, strict=True)
    return Rows(*(jnp.concatenate(pair, axis=1) for pair in pairs))

  def pairs(self) -> Bool[Array, "B X X"]:
    """Which query sees which key: those before it of its own example, and itself."""
    return self._before() | jnp.eye(self.group.shape[1], dtype=bool)[None]

  def places(self) -> Int[Array, "B X"]:
    """How many positions of its own example, prompts included, each has before it."""
    return self._before().sum(-1, dtype=jnp.int32)

  def _before(self) -> Bool[Array, "B X X"]:
    X = self.group.shape[1]
    earlier_XX = jnp.tril(jnp.ones((X, X), bool), -1)
    same_BXX = self.group[..., None] == self.group[:, None]
    return same_BXX & self.seen[:, None] & earlier_XX[None]


def inputs(batch: Any, ids: Ids, injection: Injection) -> tuple[Rows, Array]:
  """Rows of the first piece, and which of its positions hold anything [B T]."""
  inputs_BT, index_BT = batch["inputs"], batch.get("prompt_index")
  segments_BT = batch.get("segment_ids")
  group_BT = ids.is_real(inputs_BT).astype(jnp.int32)
  group_BT = group_BT if segments_BT is None else segments_BT
  held_BT = group_BT > 0
  layers, slots = injection.get("decoder.layers"), injection.get("decoder.input")
  if layers is not None:
    held_BT &= layered.visible(layers, index_BT, segments_BT)
  if slots is not None and slots.mask is not None:
    own_BT = layered.of_input(index_BT, layers)
    held_BT &= inject.visible(slots.mask, own_BT, segments_BT)
  place_BT = texts.places(batch, ids)
  last_BT = (place_BT >= 0) & (place_BT + 1 == _words(place_BT, group_BT, group_BT))
  return Rows(group_BT, held_BT & ~last_BT), held_BT


def targets(batch: Any, ids: Ids) -> Rows:
  """Rows of the second piece."""
  group_BU = batch.get("decoder_segment_ids")
  if group_BU is None:
    group_BU = ids.is_real(batch["targets"]).astype(jnp.int32)
  return Rows(group_BU, group_BU > 0)


def openings(
  batch: Any, ids: Ids, group_BT: Int[Array, "B T"], group_BU: Int[Array, "B U"]
) -> Int[Array, "B U"]:
  """At the first target position of each example, the place of the text's last token
  in it (-1 where there is none, and elsewhere)."""
  before_BU = jnp.pad(group_BU, ((0, 0), (1, 0)))[:, :-1]
  words_BU = _words(texts.places(batch, ids), group_BT, group_BU)
  return jnp.where(group_BU != before_BU, words_BU - 1, -1)


def last(batch: Any, ids: Ids) -> Int[Array, "B 1"]:
  """Where the last token of each text stands, one example a row; 0 without one."""
  return texts.places(batch, ids).argmax(axis=1)[:, None]


def _words(
  place_BT: Int[Array, "B T"], group_BT: Int[Array, "B T"], group_BX: Int[Array, "B X"]
) -> Int[Array, "B X"]:
  """How many tokens the text of each position's own example has."""
  same_BXT = group_BX[..., None] == group_BT[:, None]
  return jnp.where(same_BXT, place_BT[:, None] + 1, 0).max(axis=-1, initial=0)

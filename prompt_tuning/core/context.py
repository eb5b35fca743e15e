"""What a prompt may look at, and the static facts of the backbone that it steers.

The letters are those of `prompt_tuning/core/axes.py`; R counts examples: one a row of
the batch, or one a segment of a packed row.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from prompt_tuning.core.ids import MARKS, Ids


class Tables(NamedTuple):
  """What a place of a backbone asks of a prompt.

  Attributes:
    count: G, how many tables. width: of a vector.
    inputs: of a kernel's place, how many of the width belong to its inputs.
  """

  count: int
  width: int
  inputs: int = 0


@dataclasses.dataclass(frozen=True)
class Spec:
  """Static facts of a backbone.

  Attributes:
    width: H, the width of token embeddings.
    vocabulary: V, rows of the token table (padding rows included).
    places: what a prompt may act on, see `core.places`.
    table: the token table [V H], only while a prompt is initialised.
    encode: text -> piece ids without an end mark, only while initialised.
    asked: of the places, the one of the prompt that is being asked.
    ids: which ids are no words.
  """

  width: int
  vocabulary: int
  places: Mapping[str, Tables] = dataclasses.field(default_factory=dict)
  table: Any = dataclasses.field(default=None, compare=False, repr=False)
  encode: Callable[[str], Sequence[int]] | None = dataclasses.field(
    default=None, compare=False, repr=False
  )
  asked: Tables | None = None
  ids: Ids = Ids()

  @property
  def reader(self) -> str:
    """The stack that reads the text: "encoder", or the "decoder" of who has none."""
    own = any(place.startswith("encoder.") for place in self.places)
    return "encoder" if own else "decoder"


@flax.struct.dataclass
class Context:
  """All that a prompt may read, one example a row, its real tokens in front.

  Attributes:
    ids: token ids [R T], without prompt positions; 0 where there is none.
    mask: true where `ids` holds a real token [R T].
    embeddings: frozen token embeddings of `ids` [R T H].
    task: task number of each example [R], or None.
    encoding: frozen encoder output on `ids`, no gradient [R T H], or None where no
      part of the prompt names "encoding" among its `needs`.
    external: vectors that the data pipeline supplies [R C], or None.
    code: what the part of the prompt that reads the encoding made of it before, with
      `Prompt.code` [R C], or None. That part then reads no encoding.
    segments: S, examples in a row of the batch.
  """

  ids: Int[Array, "R T"]
  mask: Bool[Array, "R T"]
  embeddings: Float[Array, "R T H"]
  task: Int[Array, " R"] | None = None
  encoding: Float[Array, "R T H"] | None = None
  external: Float[Array, "R C"] | None = None
  code: Float[Array, "R C"] | None = None
  segments: int = flax.struct.field(pytree_node=False, default=1)


@flax.struct.dataclass
class Code:
  """What a condition makes of a context: Q vectors an example.

  Attributes:
    values: [R Q C]; Q is 1 for a pooled code.
    mask: true where a vector stands for something real [R Q].
  """

  values: Float[Array, "R Q C"]
  mask: Bool[Array, "R Q"]


def pooled(vectors_RC: Float[Array, "R C"]) -> Code:
  """Wraps one vector an example as a code with Q = 1."""
  return Code(vectors_RC[:, None], jnp.ones((vectors_RC.shape[0], 1), bool))


def masked_mean(
  values_RTC: Float[Array, "R T C"], mask_RT: Bool[Array, "R T"]
) -> Float[Array, "R C"]:
  """Mean over the real positions; zero where there are none."""
  weights_RT = mask_RT.astype(values_RTC.dtype)
  total_RC = jnp.einsum("RTC,RT->RC", values_RTC, weights_RT)
  return total_RC / jnp.maximum(weights_RT.sum(-1, keepdims=True), 1)


def of_each(segments_BT: Int[Array, "B T"], segments: int) -> Bool[Array, "B S T"]:
  """Which positions are those of each of S examples of a packed row, counted from 1."""
  return segments_BT[:, None] == jnp.arange(1, segments + 1)[None, :, None]


def mean_of_each(
  values_BTC: Float[Array, "B T C"], held_BST: Bool[Array, "B S T"]
) -> Float[Array, "B S C"]:
  """Mean over the positions that each example holds; zero where it holds none."""
  weights_BST = held_BST.astype(values_BTC.dtype)
  total_BSC = jnp.einsum("BST,BTC->BSC", weights_BST, values_BTC)
  return total_BSC / jnp.maximum(weights_BST.sum(-1, keepdims=True), 1)


@flax.struct.dataclass
class Rows:
  """The real tokens of a batch, reserved positions left out.

  Attributes:
    ids: rows as they are packed, real tokens in front [B T].
    mask: true at their real tokens [B T].
    segments: 1..S, which example of the row a token belongs to [B T], or None where a
      row holds one example.
    order: where the t-th token of each example stands in its row of `ids` [R L].
    own_mask: true where an example has a t-th token [R L].
  """

  ids: Int[Array, "B T"]
  mask: Bool[Array, "B T"]
  segments: Int[Array, "B T"] | None
  order: Int[Array, "R L"] | None
  own_mask: Bool[Array, "R L"]

  def split(self, values_BTX: Array) -> Array:
    """Values at the tokens of each example, one example a row [R L ...].

    What stands behind an example's last token is not its own: see `own_mask`.
    """
    if self.order is None:
      return values_BTX
    B, T = self.ids.shape
    first_R1 = (jnp.arange(len(self.order)) // (len(self.order) // B) * T)[:, None]
    flat = values_BTX.reshape(B * T, *values_BTX.shape[2:])
    return jnp.take(flat, first_R1 + self.order, axis=0)


def real_rows(
  inputs_BT: Int[Array, "B T"],
  prompt_index_BT: Int[Array, "B T"] | None,
  segments_BT: Int[Array, "B T"] | None,
  segments: int = 1,
  ids: Ids = MARKS,
) -> Rows:
  """Moves the real tokens of each row to its front, and finds those of each example.

  Args:
    inputs_BT: token ids.
    prompt_index_BT: -1 at real tokens, 0..P-1 at reserved positions.
    segments_BT: 1..S, which example of the row a token belongs to; 0 at pads. None
      where each row holds one example.
    segments: S, static; R = B * S, and example s of row b is number b * S + s - 1.
    ids: of the family, which say what pads.
  """
  B, T = inputs_BT.shape
  real_BT = ids.is_real(inputs_BT)
  if prompt_index_BT is not None:
    real_BT &= prompt_index_BT < 0
  order_BT, mask_BT = _to_the_front(real_BT)
  ids_BT = jnp.where(mask_BT, jnp.take_along_axis(inputs_BT, order_BT, 1), 0)
  if segments == 1:
    return Rows(ids_BT, mask_BT, None, None, mask_BT)
  segments_BT = jnp.where(mask_BT, jnp.take_along_axis(segments_BT, order_BT, 1), 0)
  own_BST = of_each(segments_BT, segments)
  order_RT, own_RT = _to_the_front(own_BST.reshape(B * segments, T))
  return Rows(ids_BT, mask_BT, segments_BT, order_RT, own_RT)


def _to_the_front(chosen_RT: Array) -> tuple[Array, Array]:
  """Positions with the chosen ones first, in order, and which of them were chosen."""
  # A stable sort by "not chosen" keeps the order and is free of scatters.
  order_RT = jnp.argsort(~chosen_RT, axis=1, stable=True)
  count_R1 = chosen_RT.sum(1, keepdims=True)
  return order_RT, jnp.arange(chosen_RT.shape[1])[None] < count_R1


def frozen(tree: Any) -> Any:
  """Cuts the gradient: what comes from the backbone is data to a prompt."""
  return jax.tree.map(jax.lax.stop_gradient, tree)

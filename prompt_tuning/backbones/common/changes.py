"""What a prompt changes inside of the layers: factors, summands, kernels, adapters.

A change of one kernel y = x W, for an example with its own vectors:

  y = (x W + sum_p (x . left_p) right_p) * scale + shift

and behind the last kernel of a sublayer  y + sum_p ReLU(y . down_p) up_p.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from prompt_tuning.core.injection import Injection

# Kinds of two factors in one row, and their names here.
_HALVES = {"weight": ("left", "right"), "adapter": ("down", "up")}
# Inner name, such as "self.key" -> its change.
Changes = Mapping[str, "Change"]


@flax.struct.dataclass
class Change:
  """The change of one kernel, in one layer (or in all, with a leading axis).

  The letter E counts examples of a row: 1 where the row is one, or where no input was
  read.

  Attributes:
    scale, shift: [#B E O] or None. left, right: [#B E P I] and [#B E P O], or None.
    down, up: of an adapter, or None.
    own: which example of a packed row a token belongs to [B T E], or None where E is 1.
  """

  scale: Float[Array, "*L #B E O"] | None = None
  shift: Float[Array, "*L #B E O"] | None = None
  left: Float[Array, "*L #B E P I"] | None = None
  right: Float[Array, "*L #B E P O"] | None = None
  down: Float[Array, "*L #B E P O"] | None = None
  up: Float[Array, "*L #B E P O"] | None = None
  own: Float[Array, "*L B T E"] | None = None


def changed(
  x_BTI: Float[Array, "B T I"], y_BTO: Float[Array, "B T O"], change: Change | None
) -> Float[Array, "B T O"]:
  """The outputs of a kernel with its change; `x` are its inputs."""
  if change is None:
    return y_BTO
  dtype = y_BTO.dtype
  if change.left is not None:
    factors = change.left, change.right, change.own
    y_BTO = y_BTO + _low_rank(x_BTI, *factors).astype(dtype)
  if change.scale is not None:
    y_BTO = y_BTO * _spread(change.scale, change.own).astype(dtype)
  if change.shift is not None:
    y_BTO = y_BTO + _spread(change.shift, change.own).astype(dtype)
  if change.down is not None:
    factors = change.down, change.up, change.own
    y_BTO = y_BTO + _low_rank(y_BTO, *factors, jax.nn.relu).astype(dtype)
  return y_BTO


def _spread(values: Float[Array, "#B E O"], own: Array | None) -> Array:
  """The vector of each token's own example [#B #T O]."""
  if own is None:
    return values
  return jnp.einsum("BTE,BEO->BTO", own, values)


def _low_rank(
  x_BTI: Float[Array, "B T I"],
  left: Float[Array, "#B E P I"],
  right: Float[Array, "#B E P O"],
  own: Float[Array, "B T E"] | None,
  activation: Callable[[Array], Array] | None = None,
) -> Float[Array, "B T O"]:
  """sum_p f(x . left_p) right_p of each token's own example."""
  left, right = left.astype(x_BTI.dtype), right.astype(x_BTI.dtype)
  f = activation or (lambda x: x)
  if own is None:
    left, right = left[:, 0], right[:, 0]
    if len(left) == 1 and activation is None:
      return jnp.einsum("BTI,PI,PO->BTO", x_BTI, left[0], right[0])
    rows = jnp.broadcast_to(left, (len(x_BTI), *left.shape[1:]))
    read_BTP = f(jnp.einsum("BTI,BPI->BTP", x_BTI, rows))
    rows = jnp.broadcast_to(right, (len(x_BTI), *right.shape[1:]))
    return jnp.einsum("BTP,BPO->BTO", read_BTP, rows)
  read_BTEP = f(jnp.einsum("BTI,BEPI->BTEP", x_BTI, left))
  read_BTEP *= own[..., None].astype(x_BTI.dtype)
  return jnp.einsum("BTEP,BEPO->BTO", read_BTEP, right)


def of(
  injection: Injection | None,
  stack: str,
  inputs: Mapping[str, int],
  B: int,
  segments_BT: Int[Array, "B T"] | None = None,
  encoder_segments_BT: Int[Array, "B X"] | None = None,
) -> Changes:
  """Changes of a stack, each array with a leading axis of layers.

  Args:
    injection: of a prompt. stack: "encoder" or "decoder".
    inputs: of a kernel's place, the width of its inputs.
    B: rows. segments_BT: of the stack's own tokens, where rows are packed.
    encoder_segments_BT: of the tokens that cross-attention's keys and values are of.
  """
  found: dict[str, dict[str, Any]] = {}
  for place, record in (injection.held if injection is not None else {}).items():
    first, _, rest = place.partition(".")
    inner, _, kind = rest.rpartition(".")
    if first != stack or not inner:
      continue
    vectors = record.vectors
    parts = {kind: vectors}
    if kind in _HALVES:
      at = inputs[place]
      halves = vectors[..., :at], vectors[..., at:]
      parts = dict(zip(_HALVES[kind], halves, strict=True))
    mine = found.setdefault(inner, {})
    mine |= {name: _by_layer(value, B) for name, value in parts.items()}
    if len(vectors) > B:
      source = inner in ("cross.key", "cross.value")
      segments = encoder_segments_BT if source else segments_BT
      mine["segments"] = (segments, len(vectors) // B)
  return {inner: _made(parts) for inner, parts in found.items()}


def _by_layer(values: Float[Array, "R L *X"], B: int) -> Float[Array, "L #B E *X"]:
  R, L, *rest = values.shape
  rows = values.reshape(1 if R == 1 else B, 1 if R == 1 else R // B, L, *rest)
  return jnp.moveaxis(rows, 2, 0)


def _made(parts: dict[str, Any]) -> Change:
  segments, S = parts.pop("segments", (None, 1))
  if segments is None:
    return Change(**parts)
  own_BTE = jax.nn.one_hot(segments - 1, S)
  L = len(next(iter(parts.values())))
  # Static tables beside generated ones stand in every example.
  wide = {
    name: jnp.broadcast_to(x, (L, own_BTE.shape[0], S, *x.shape[3:]))
    for name, x in parts.items()
  }
  return Change(**wide, own=jnp.broadcast_to(own_BTE, (L, *own_BTE.shape)))

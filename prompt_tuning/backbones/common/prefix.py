"""Keys and values that a prompt puts in front of those of the tokens."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

KeysValues = tuple[Array, Array]


@flax.struct.dataclass
class Prefix:
  """Keys and values beside those of the tokens, in each layer of a stack.

  Attributes:
    layers: of each layer, [B P N D] twice; layers are a list, or a leading axis where
      they are scanned.
    allowed: which query may attend to which slot [B 1 T P] (T and B may be 1).
    length: places before the text that the slots fill; slot p stands at p % length -
      length, so that those of each example of a packed row stand before it.
  """

  layers: Any
  allowed: Bool[Array, "#B 1 #T P"]
  length: int = flax.struct.field(pytree_node=False)


def joined(prefix: KeysValues | None, keys_values: KeysValues) -> KeysValues:
  """Keys and values with a prefix's in front."""
  if prefix is None:
    return keys_values
  both = zip(prefix, keys_values, strict=True)
  return tuple(jnp.concatenate([x.astype(y.dtype), y], axis=1) for x, y in both)


def places(
  length: int, segments_BT: Int[Array, "B T"] | None
) -> Int[Array, "#B {length}"]:
  """Position of each token in its own example."""
  places_1T = jnp.arange(length)[None]
  if segments_BT is None:
    return places_1T
  before_BT = jnp.pad(segments_BT, ((0, 0), (1, 0)))[:, :-1]
  first_BT = jnp.where(segments_BT != before_BT, places_1T, 0)
  return places_1T - jax.lax.cummax(first_BT, axis=1)


def prefix(
  kv_RGPJ: Float[Array, "R G P J"],
  mask_RP: Bool[Array, "R P"] | None,
  B: int,
  segments_BT: Int[Array, "B T"] | None,
  heads: tuple[int, int],
  scanned: bool,
) -> Prefix:
  """The prefix of B rows, from the fields of an `Injection`.

  In a packed row, a prompt that reads its input has slots for each segment, which the
  others do not see.

  Args:
    kv_RGPJ, mask_RP: of the prompt. B: rows. segments_BT: where rows are packed.
    heads: (N, D) of keys and values. scanned: whether layers are.
  """
  R, _, P, _ = kv_RGPJ.shape
  S = 1 if R == 1 or segments_BT is None else R // B
  if mask_RP is None:
    mask_RP = jnp.ones((R, P), bool)
  allowed_B1X = mask_RP.reshape(-1, 1, S * P)
  if S > 1:
    own_BTS = segments_BT[..., None] == jnp.arange(1, S + 1)[None, None]
    allowed_B1X = allowed_B1X & jnp.repeat(own_BTS, P, axis=-1)
  layers = per_layer(stacked(kv_RGPJ, B, heads, S), scanned)
  return Prefix(layers, allowed_B1X[:, None], P)


def stacked(
  kv_RGPJ: Float[Array, "R G P J"], B: int, heads: tuple[int, int], S: int = 1
) -> KeysValues:
  """Keys and values [L B X N D], those of the S examples of a row side by side."""
  R, G, P, J = kv_RGPJ.shape
  rows_BSGPJ = kv_RGPJ.reshape(1 if R == 1 else B, S, G, P, J)
  rows_BSGPJ = jnp.broadcast_to(rows_BSGPJ, (B, S, G, P, J))
  rows_GBSPJ = jnp.moveaxis(rows_BSGPJ, 2, 0)
  layers = rows_GBSPJ.reshape(G // 2, 2, B, S * P, *heads)
  return layers[:, 0], layers[:, 1]


def per_layer(stacked: KeysValues, scanned: bool) -> Any:
  """Keys and values [L ...] as a walk of the layers takes them."""
  return stacked if scanned else list(zip(*stacked, strict=True))

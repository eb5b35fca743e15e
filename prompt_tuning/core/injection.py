"""What a prompt hands back, and how virtual positions are filled with it."""

import functools
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from prompt_tuning.core.places import Place

_EXACT = jax.lax.Precision.HIGHEST


@flax.struct.dataclass
class Injection:
  """Records of places, by their names; a backbone obeys each of them.

  Attributes:
    held: name -> record, see `core.places`.
  """

  held: Mapping[str, Place] = flax.struct.field(default_factory=dict)

  @property
  def places(self) -> frozenset[str]:
    """Names of the places that hold something."""
    return frozenset(self.held)

  def get(self, place: str) -> Any:
    """The record of a place, or None."""
    return self.held.get(place)

  def beside(self, other: "Injection") -> "Injection":
    """Both at once: where both hold a record, the two side by side."""
    held = dict(self.held)
    for name, record in other.held.items():
      held[name] = held[name].beside(record) if name in held else record
    return Injection(held)


def fill(
  embeddings_BTH: Float[Array, "B T H"],
  prompt_RPH: Float[Array, "R P H"],
  prompt_index_BT: Int[Array, "B T"],
  segments_BT: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T H"]:
  """Writes prompt vectors into the reserved positions.

  x[b, t] = prompt[row(b, t), prompt_index[b, t]] where prompt_index >= 0.

  The choice is a product with a one-hot matrix: exact, and its transpose, which the
  gradient needs, is a product too and not a scatter.
  """
  chosen_BTH = choose(prompt_RPH, prompt_index_BT, segments_BT)
  reserved_BT1 = (prompt_index_BT >= 0)[..., None]
  return jnp.where(
    reserved_BT1, chosen_BTH.astype(embeddings_BTH.dtype), embeddings_BTH
  )


def add(
  embeddings_BTH: Float[Array, "B T H"],
  offset_RPH: Float[Array, "R P H"],
  places_BT: Int[Array, "B T"],
  segments_BT: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T H"]:
  """Adds an offset's p-th vector to the p-th token of each text.

  Args:
    embeddings_BTH: of tokens. offset_RPH: see `core.places.Offset`.
    places_BT: place of a token in its own text, -1 where nothing is added; texts may be
      longer than P.
    segments_BT: 1..S, which example of a packed row a token belongs to.
  """
  P = offset_RPH.shape[1]
  index_BT = jnp.where(places_BT < P, places_BT, -1)
  chosen_BTH = choose(offset_RPH, index_BT, segments_BT)
  return embeddings_BTH + chosen_BTH.astype(embeddings_BTH.dtype)


def visible(
  mask_RP: Bool[Array, "R P"],
  prompt_index_BT: Int[Array, "B T"],
  segments_BT: Int[Array, "B T"] | None = None,
) -> Bool[Array, "B T"]:
  """True at real tokens and at the prompt positions that the mask keeps."""
  kept_BT1 = choose(
    mask_RP[..., None].astype(jnp.float32), prompt_index_BT, segments_BT
  )
  return (prompt_index_BT < 0) | (kept_BT1[..., 0] > 0.5)


def choose(
  values_RPX: Float[Array, "R P X"],
  prompt_index_BT: Int[Array, "B T"],
  segments_BT: Int[Array, "B T"] | None,
) -> Float[Array, "B T X"]:
  """Each position's own vector of its own example; zeros where the index is -1."""
  R, P, X = values_RPX.shape
  B, _ = prompt_index_BT.shape
  if R == 1:
    one_hot_BTP = jax.nn.one_hot(prompt_index_BT, P, dtype=values_RPX.dtype)
    return _product("QX", one_hot_BTP, values_RPX[0])
  S = R // B
  index_BT = prompt_index_BT
  if S > 1:
    own_BT = (segments_BT - 1) * P + prompt_index_BT
    index_BT = jnp.where(prompt_index_BT >= 0, own_BT, -1)
  one_hot_BTQ = jax.nn.one_hot(index_BT, S * P, dtype=values_RPX.dtype)
  values_BQX = values_RPX.reshape(B, S * P, X)
  return _product("BQX", one_hot_BTQ, values_BQX)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(
  axes: str,
  one_hot_BTQ: Float[Array, "B T Q"],
  values: Float[Array, "*B Q X"],
) -> Float[Array, "B T X"]:
  """Values (of axes "QX" or "BQX") by their places; only they have a gradient.

  JAX's own gradient puts the wide factor on the left, and XLA for CPUs then turns all
  of [B T X] over, element by element, in one thread.
  """
  return jnp.einsum(f"BTQ,{axes}->BTX", one_hot_BTQ, values, precision=_EXACT)


def _product_forward(axes, one_hot_BTQ, values):
  return _product(axes, one_hot_BTQ, values), one_hot_BTQ


def _product_backward(axes, one_hot_BTQ, change_BTX):
  form = f"BTQ,BTX->{axes}"
  return None, jnp.einsum(form, one_hot_BTQ, change_BTX, precision=_EXACT)


_product.defvjp(_product_forward, _product_backward)

"""What a prompt hands back, and how virtual positions are filled with it."""

import functools

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_EXACT = jax.lax.Precision.HIGHEST


@flax.struct.dataclass
class Injection:
  """One optional field per place; a backbone obeys each field that is set.

  R is 1 for a prompt that reads no input, else the number of examples.

  Attributes:
    encoder_input: vectors for the encoder's virtual positions [R Pin H].
    encoder_mask: false where a virtual position must not be attended to [R Pin].
    decoder_input: vectors for the decoder's virtual positions [R Pdec H].
    encoder_kv: keys and values that every position of the encoder attends to beside the
      tokens, key and value of layer 0, of layer 1 and so on, J = N * D [R G Pkv J].
    encoder_kv_mask: false where such a key must not be attended to [R Pkv].
    decoder_kv: the same for the decoder's self-attention [R G Pdkv J].
  """

  encoder_input: Float[Array, "R Pin H"] | None = None
  encoder_mask: Bool[Array, "R Pin"] | None = None
  decoder_input: Float[Array, "R Pdec H"] | None = None
  encoder_kv: Float[Array, "R Ge Pkv J"] | None = None
  encoder_kv_mask: Bool[Array, "R Pkv"] | None = None
  decoder_kv: Float[Array, "R Gd Pdkv J"] | None = None

  @property
  def places(self) -> frozenset[str]:
    """Names of the places that hold something."""
    names = ("encoder_input", "decoder_input", "encoder_kv", "decoder_kv")
    return frozenset(name for name in names if getattr(self, name) is not None)


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
  chosen_BTH = _choose(prompt_RPH, prompt_index_BT, segments_BT)
  reserved_BT1 = (prompt_index_BT >= 0)[..., None]
  return jnp.where(
    reserved_BT1, chosen_BTH.astype(embeddings_BTH.dtype), embeddings_BTH
  )


def visible(
  mask_RP: Bool[Array, "R P"],
  prompt_index_BT: Int[Array, "B T"],
  segments_BT: Int[Array, "B T"] | None = None,
) -> Bool[Array, "B T"]:
  """True at real tokens and at the prompt positions that the mask keeps."""
  kept_BT1 = _choose(
    mask_RP[..., None].astype(jnp.float32), prompt_index_BT, segments_BT
  )
  return (prompt_index_BT < 0) | (kept_BT1[..., 0] > 0.5)


def _choose(
  values_RPX: Float[Array, "R P X"],
  prompt_index_BT: Int[Array, "B T"],
  segments_BT: Int[Array, "B T"] | None,
) -> Float[Array, "B T X"]:
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

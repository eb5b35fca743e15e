"""The read of attention, and what may see what.

Scores are products of queries and keys as they come: who scales them does it before.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from prompt_tuning.backbones.common import fused


def attend(
  query_BQND: Float[Array, "B Q N D"],
  key_BTND: Float[Array, "B T N D"],
  value_BTND: Float[Array, "B T N D"],
  bias: Float[Array, "#B #N #Q T"] | None,
  drop: Any = None,
) -> Float[Array, "B Q N D"]:
  """Unscaled dot-product attention, softmax in float32."""
  # Heads first for both products: left to itself, XLA for CPUs turns the second over.
  query_BNQD, key_BNTD, value_BNTD = (
    x.swapaxes(1, 2) for x in (query_BQND, key_BTND, value_BTND)
  )
  logits_BNQT = jnp.einsum("BNQD,BNTD->BNQT", query_BNQD, key_BNTD)
  weights_BNQT = _weights(logits_BNQT, bias, drop)
  return jnp.einsum("BNQT,BNTD->BNQD", weights_BNQT, value_BNTD).swapaxes(1, 2)


def attend_folded(
  query_BQND: Float[Array, "B Q N D"],
  source_BTH: Float[Array, "B T H"],
  key_HJ: Float[Array, "H J"],
  value_HJ: Float[Array, "H J"],
  bias: Float[Array, "#B #N #Q T"] | None,
  drop: Any = None,
) -> Float[Array, "B Q N D"]:
  """What `attend` gives for the keys and values source @ key and source @ value.

  Neither is made: q . (K y) = (q K') . y and sum_t w_t (V y_t) = V (sum_t w_t y_t), so
  the two matrices meet the few queries instead of all of the source.
  """
  B, Q, N, D = query_BQND.shape
  key_HND, value_HND = (x.reshape(-1, N, D) for x in (key_HJ, value_HJ))
  query_BNQH = jnp.einsum("BQND,HND->BNQH", query_BQND, key_HND)
  # One axis X of N Q: each example is then one product.
  query_BXH = query_BNQH.reshape(B, N * Q, -1)
  logits_BXT = jnp.einsum("BXH,BTH->BXT", query_BXH, source_BTH)
  weights_BNQT = _weights(logits_BXT.reshape(B, N, Q, -1), bias, drop)
  weights_BXT = weights_BNQT.reshape(B, N * Q, -1)
  read_BXH = jnp.einsum("BXT,BTH->BXH", weights_BXT, source_BTH)
  read_BNQH = read_BXH.reshape(query_BNQH.shape)
  return jnp.einsum("BNQH,HND->BQND", read_BNQH, value_HND)


def _weights(logits_BNQT: Array, bias: Array | None, drop: Any) -> Array:
  """Softmax in float32."""
  dtype = logits_BNQT.dtype
  logits_BNQT = logits_BNQT.astype(jnp.float32)
  if bias is not None:
    logits_BNQT += bias
  weights_BNQT = jax.nn.softmax(logits_BNQT).astype(dtype)
  return weights_BNQT if drop is None else drop(weights_BNQT)


def mask_bias(allowed: Bool[Array, "*X"]) -> Float[Array, "*X"]:
  """0 where attention is allowed, a large negative number elsewhere."""
  return jnp.where(allowed, 0.0, fused.MASKED).astype(jnp.float32)


def pairs(
  base: Bool[Array, "Q T"] | None,
  mask_BT: Bool[Array, "B T"] | None,
  query_segments_BQ: Int[Array, "B Q"] | None,
  key_segments_BT: Int[Array, "B T"] | None,
) -> Bool[Array, "#B 1 #Q T"]:
  """Which query may see which key; examples of a packed row do not see each other."""
  allowed = None if base is None else base[None, None]
  if mask_BT is not None:
    keys = mask_BT[:, None, None, :]
    allowed = keys if allowed is None else allowed & keys
  if query_segments_BQ is not None and key_segments_BT is not None:
    same = query_segments_BQ[:, None, :, None] == key_segments_BT[:, None, None, :]
    allowed = same if allowed is None else allowed & same
  return allowed

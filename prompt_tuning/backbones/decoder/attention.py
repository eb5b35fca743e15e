"""Attention of a decoder: turned queries and keys, few heads of keys and values.

Query head n reads the keys and values of head n // (N / G), where G counts these.
Su et al., 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding";
Ainslie et al., 2023, "GQA: Training Generalized Multi-Query Transformer Models from
Multi-Head Checkpoints".
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from prompt_tuning.backbones.common.changes import Changes, changed
from prompt_tuning.backbones.common.linear import Dense
from prompt_tuning.backbones.common.prefix import KeysValues
from prompt_tuning.backbones.decoder.config import DecoderConfig
from prompt_tuning.core import partition

# Cosine and sine of every place, or None where nothing is turned.
Turns = tuple[Array, Array] | None


def turns(config: DecoderConfig, places_BX: Int[Array, "B X"]) -> Turns:
  """Cosine and sine [B X 1 R / 2] of a head's turned front, R = `config.turned`.

  angle[t, i] = t base^(-2 i / R), in float32.
  """
  if config.positions != "rope":
    return None
  exponents_I = jnp.arange(0, config.turned, 2, dtype=jnp.float32) / config.turned
  rates_I = config.rope_base**-exponents_I
  angles = places_BX.astype(jnp.float32)[..., None, None] * rates_I[None, None, None]
  return tuple(f(angles).astype(config.dtype) for f in (jnp.cos, jnp.sin))


def turn(x_BXND: Float[Array, "B X N D"], by: Turns) -> Float[Array, "B X N D"]:
  """Pairs (i, i + R / 2) of a head turned by the angle of their place."""
  if by is None:
    return x_BXND
  cos, sin = by
  half = cos.shape[-1]
  one, two, rest = jnp.split(x_BXND, (half, 2 * half), axis=-1)
  turned = one * cos - two * sin, two * cos + one * sin
  return jnp.concatenate([*turned, rest], axis=-1)


def attend(
  query_BQND: Float[Array, "B Q N D"],
  parts: Sequence[KeysValues],
  bias: Float[Array, "#B 1 #Q T"],
  drop: Any = None,
) -> Float[Array, "B Q N D"]:
  """Unscaled attention over parts that stand one behind the other, T keys in all.

  What was read before is one part and stays where it is: joined, it would be copied at
  every step, and for every beam or label that reads it.
  """
  B, Q, N, D = query_BQND.shape
  G = parts[0][0].shape[2]
  query_BQGRD = query_BQND.reshape(B, Q, G, N // G, D)
  products = [jnp.einsum("BQGRD,BTGD->BGRQT", query_BQGRD, key) for key, _ in parts]
  logits_BGRQT = jnp.concatenate(products, axis=-1).astype(jnp.float32)
  weights_BGRQT = jax.nn.softmax(logits_BGRQT + bias[:, :, None])
  weights_BGRQT = weights_BGRQT.astype(query_BQND.dtype)
  if drop is not None:
    weights_BGRQT = drop(weights_BGRQT)
  mixed, start = None, 0
  for _, value_BTGD in parts:
    stop = start + value_BTGD.shape[1]
    share = weights_BGRQT[..., start:stop]
    one = jnp.einsum("BGRQT,BTGD->BQGRD", share, value_BTGD)
    mixed, start = one if mixed is None else mixed + one, stop
  return mixed.reshape(B, Q, N, D)


class Attention(nn.Module):
  """Causal self-attention; what may see what comes as a bias."""

  config: DecoderConfig

  def setup(self) -> None:
    config = self.config
    wide, J = config.num_heads * config.head_dim, config.joined

    def projection(inputs: int, outputs: int, *axes: str) -> Dense:
      bias = config.attention_bias
      return Dense(inputs, outputs, axes, config.dtype, bias=bias)

    self.query = projection(config.emb_dim, wide, "embed", "joined_kv")
    self.key = projection(config.emb_dim, J, "embed", "joined_kv")
    self.value = projection(config.emb_dim, J, "embed", "joined_kv")
    self.out = projection(wide, config.emb_dim, "joined_kv", "embed")
    self.dropout = nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))

  def _changed(self, name: str, x: Array, changes: Changes | None) -> Array:
    """What the kernel of a name gives, with what a prompt changes of it."""
    y = getattr(self, name)(x)
    return changed(x, y, changes.get(f"self.{name}")) if changes else y

  def _heads(self, x: Float[Array, "B T J"]) -> Float[Array, "B T N D"]:
    x = x.reshape(*x.shape[:2], -1, self.config.head_dim)
    return partition.placed(x, "batch", "length", "heads", "kv")

  def keys_values(
    self, y_BTH: Float[Array, "B T H"], by: Turns, changes: Changes | None = None
  ) -> KeysValues:
    """Keys, turned, and values of tokens."""
    key, value = (
      self._heads(self._changed(name, y_BTH, changes)) for name in ("key", "value")
    )
    return turn(key, by), value

  def __call__(
    self,
    y_BQH: Float[Array, "B Q H"],
    parts: Sequence[KeysValues],
    by: Turns,
    bias: Float[Array, "#B 1 #Q T"],
    train: bool,
    changes: Changes | None = None,
  ) -> Float[Array, "B Q H"]:
    """What the queries read."""
    query_BQND = turn(self._heads(self._changed("query", y_BQH, changes)), by)
    drop = None
    if train and self.config.dropout_rate:

      def drop(weights: Array) -> Array:
        return self.dropout(weights, deterministic=False)

    scaled_BQND = query_BQND * self.config.head_dim**-0.5
    mixed_BQND = attend(scaled_BQND, parts, bias, drop)
    mixed_BQJ = mixed_BQND.reshape(*mixed_BQND.shape[:2], -1)
    return self._changed("out", mixed_BQJ, changes)

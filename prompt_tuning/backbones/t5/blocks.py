"""One layer of each stack of a T5.

Names, shapes and logical axes of parameters follow T5X's minimal network.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jaxtyping import Array, Float, Int

from prompt_tuning.backbones.common import layered
from prompt_tuning.backbones.common.changes import Changes
from prompt_tuning.backbones.common.prefix import KeysValues, joined
from prompt_tuning.backbones.t5.attention import Attention
from prompt_tuning.backbones.t5.config import T5Config
from prompt_tuning.backbones.t5.layers import FeedForward, RMSNorm
from prompt_tuning.core import partition


def marked(x: Float[Array, "B T H"]) -> Float[Array, "B T H"]:
  """Says how the residual stream lies over devices."""
  return partition.placed(x, "batch", "length", "embed")


def _obeyed(
  module: nn.Module, x_BTH: Array, bias: Array, turns: Any, slots: Any
) -> tuple[Array, Array]:
  """States with what a prompt writes before a layer, and the bias that hides slots."""
  if slots is None:
    return x_BTH, bias
  key = None
  if module.train and any(slot.part.reader is not None for slot in slots):
    key = module.make_rng("dropout")
  return layered.write(x_BTH, turns, slots, key), layered.hidden(bias, turns, slots)


class EncoderLayer(nn.Module):
  """Self-attention and feed-forward, each behind a norm and a residual."""

  config: T5Config
  train: bool

  @nn.compact
  def __call__(
    self,
    x_BTH: Float[Array, "B T H"],
    per_layer: Sequence[Any],
    bias: Float[Array, "#B N T X"],
    slots: Any,
  ) -> tuple[Float[Array, "B T H"], None]:
    config, train = self.config, self.train
    prefix, changes, turns = per_layer
    x_BTH, bias = _obeyed(self, x_BTH, bias, turns, slots)
    drop = nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))
    attention = Attention(config, name="attention")
    y = RMSNorm(config.dtype, name="pre_attention_layer_norm")(x_BTH)
    keys_values = joined(prefix, attention.keys_values(y, changes))
    y = attention(y, keys_values, bias, train, changes)
    x_BTH += drop(y, deterministic=not train)
    y = RMSNorm(config.dtype, name="pre_mlp_layer_norm")(x_BTH)
    y = FeedForward(config, name="mlp")(y, train, changes)
    x_BTH = marked(x_BTH + drop(y, deterministic=not train))
    self.sow("trace", "states", x_BTH)
    return x_BTH, None


class PerLayer(NamedTuple):
  """What a layer of the decoder gets of its own; in a scan, with a leading axis.

  Attributes:
    cross: keys and values of cross-attention made before, else None.
    cache: of earlier keys and values, else None.
    prefix, cross_prefix: keys and values in front of those of the tokens, or None.
    changes: see `changes`. turns: see `layered`.
  """

  cross: KeysValues | None = None
  cache: KeysValues | None = None
  prefix: KeysValues | None = None
  cross_prefix: KeysValues | None = None
  changes: Changes | None = None
  turns: Any = None


class DecoderLayer(nn.Module):
  """Causal self-attention, attention to the encoder, feed-forward.

  Run over whole targets, or over the next few tokens with a cache of earlier keys and
  values and with the cross-attention's keys and values made beforehand.
  """

  config: T5Config
  train: bool

  def setup(self) -> None:
    config = self.config
    self.pre_self_attention_layer_norm = RMSNorm(config.dtype)
    self.self_attention = Attention(config)
    self.pre_cross_attention_layer_norm = RMSNorm(config.dtype)
    self.encoder_decoder_attention = Attention(config, "cross")
    self.pre_mlp_layer_norm = RMSNorm(config.dtype)
    self.mlp = FeedForward(config)
    self.dropout = nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))

  def cross(
    self, carry: None, per_layer: Any, encoded_BTH: Array
  ) -> tuple[None, KeysValues]:
    """Keys and values that this layer's cross-attention reads."""
    prefix, changes = per_layer
    made = self.encoder_decoder_attention.keys_values(encoded_BTH, changes)
    return carry, joined(prefix, made)

  def __call__(
    self,
    x_BUH: Float[Array, "B U H"],
    per_layer: Sequence[Any],
    self_bias: Float[Array, "#B N U X"],
    cross_bias: Float[Array, "B 1 #U Y"],
    encoded_BTH: Float[Array, "B T H"] | None,
    index: Int[Array, ""] | None,
    slots: Any,
  ) -> tuple[Float[Array, "B U H"], KeysValues | None]:
    cross, cache, prefix, cross_prefix, changes, turns = per_layer
    x_BUH, self_bias = _obeyed(self, x_BUH, self_bias, turns, slots)
    y = self.pre_self_attention_layer_norm(x_BUH)
    keys_values = joined(prefix, self.self_attention.keys_values(y, changes))
    if cache is not None:
      keys_values = cache = jax.tree.map(
        lambda old, new: jax.lax.dynamic_update_slice_in_dim(
          old, new.astype(old.dtype), index, axis=1
        ),
        cache,
        keys_values,
      )
    y = self.self_attention(y, keys_values, self_bias, self.train, changes)
    x_BUH += self.dropout(y, deterministic=not self.train)
    y = self.pre_cross_attention_layer_norm(x_BUH)
    attention = self.encoder_decoder_attention
    if cross is None:
      extra = _of_cross(changes), cross_prefix
      y = attention.read(y, encoded_BTH, cross_bias, self.train, *extra)
    else:
      y = attention(y, cross, cross_bias, self.train, changes)
    x_BUH += self.dropout(y, deterministic=not self.train)
    y = self.mlp(self.pre_mlp_layer_norm(x_BUH), self.train, changes)
    x_BUH = marked(x_BUH + self.dropout(y, deterministic=not self.train))
    self.sow("trace", "states", x_BUH)
    return x_BUH, cache


def _of_cross(changes: Changes | None) -> Changes | None:
  """The changes that cross-attention obeys, if there are any."""
  found = {k: v for k, v in (changes or {}).items() if k.startswith("cross.")}
  return found or None

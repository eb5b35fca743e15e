"""The parts of a BERT's layer: dense maps with biases, norms, attention, feed-forward.

Devlin et al., 2019, "BERT: Pre-training of Deep Bidirectional Transformers for Language
Understanding". Each norm stands behind its residual.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import partitioning
from jaxtyping import Array, Float

from prompt_tuning.backbones.bert.config import BertConfig
from prompt_tuning.backbones.common import layered
from prompt_tuning.backbones.common.attend import attend
from prompt_tuning.backbones.common.changes import Changes, changed
from prompt_tuning.backbones.common.linear import Dense
from prompt_tuning.backbones.common.prefix import joined
from prompt_tuning.core import partition
from prompt_tuning.core.axes import along

ACTIVATIONS = {
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
  "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
  "relu": jax.nn.relu,
}


# A kernel and a bias: x W + b.
Affine = functools.partial(Dense, bias=True)


class LayerNorm(nn.Module):
  """(x - mean) / sqrt(variance + eps) * scale + bias, computed in float32."""

  epsilon: float
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, "*X H"]) -> Float[Array, "*X H"]:
    def drawn(name: str, start: Any) -> Array:
      found = partitioning.param_with_axes(name, start, x.shape[-1:], axes=("embed",))
      return along(found, x)

    scale, bias = (
      drawn("scale", nn.initializers.ones),
      drawn("bias", nn.initializers.zeros),
    )
    wide = x.astype(jnp.float32)
    wide = wide - wide.mean(-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + self.epsilon)
    return (wide * inverse * scale + bias).astype(self.dtype)


def norm(config: BertConfig, name: str | None = None) -> LayerNorm:
  return LayerNorm(config.norm_epsilon, config.dtype, name=name)


class Attention(nn.Module):
  """Self-attention; queries are scaled when they are read, never in the weights."""

  config: BertConfig

  def setup(self) -> None:
    H, dtype = self.config.emb_dim, self.config.dtype
    inner = "embed", "joined_kv"
    self.query, self.key, self.value = (Affine(H, H, inner, dtype) for _ in range(3))
    self.out = Affine(H, H, ("joined_kv", "embed"), dtype)
    self.dropout = nn.Dropout(self.config.dropout_rate)

  def __call__(
    self,
    x_BTH: Float[Array, "B T H"],
    bias: Float[Array, "#B 1 #T X"],
    train: bool,
    prefix: tuple[Array, Array] | None = None,
    changes: Changes | None = None,
  ) -> Float[Array, "B T H"]:
    """What each position reads of all, a prefix's keys and values in front."""

    def heads(name: str) -> Float[Array, "B T N D"]:
      y = self._changed(name, x_BTH, changes)
      y = y.reshape(*y.shape[:2], self.config.num_heads, self.config.head_dim)
      return partition.placed(y, "batch", "length", "heads", "kv")

    query_BTND = heads("query") * self.config.head_dim**-0.5
    keys_values = joined(prefix, (heads("key"), heads("value")))
    mixed_BTND = attend(query_BTND, *keys_values, bias, self._drop(train))
    mixed_BTJ = mixed_BTND.reshape(*mixed_BTND.shape[:2], -1)
    return self._changed("out", mixed_BTJ, changes)

  def _changed(self, name: str, x: Array, changes: Changes | None) -> Array:
    y = getattr(self, name)(x)
    return changed(x, y, changes.get(f"self.{name}")) if changes else y

  def _drop(self, train: bool) -> Any:
    if not (train and self.config.dropout_rate):
      return None
    return lambda weights: self.dropout(weights, deterministic=False)


class FeedForward(nn.Module):
  """act(x Wi + bi) Wo + bo."""

  config: BertConfig

  @nn.compact
  def __call__(
    self, x_BTH: Float[Array, "B T H"], changes: Changes | None = None
  ) -> Float[Array, "B T H"]:
    config, changes = self.config, changes or {}
    sizes, dtype = (config.emb_dim, config.mlp_dim), config.dtype
    up = Affine(*sizes, ("embed", "mlp"), dtype, name="wi")
    y_BTF = changed(x_BTH, up(x_BTH), changes.get("mlp.up"))
    y_BTF = partition.placed(y_BTF, "batch", "length", "mlp")
    y_BTF = ACTIVATIONS[config.activation](y_BTF)
    y_BTF = changed(y_BTF, y_BTF, changes.get("mlp.hidden"))
    down = Affine(*sizes[::-1], ("mlp", "embed"), dtype, name="wo")
    return changed(y_BTF, down(y_BTF), changes.get("mlp.down"))


class Layer(nn.Module):
  """Self-attention and feed-forward, each with a residual and then a norm."""

  config: BertConfig
  train: bool

  @nn.compact
  def __call__(
    self,
    x_BTH: Float[Array, "B T H"],
    per_layer: Sequence[Any],
    bias: Float[Array, "#B 1 #T X"],
    slots: Any,
  ) -> tuple[Float[Array, "B T H"], None]:
    config, train = self.config, self.train
    prefix, changes, turns = per_layer
    x_BTH, bias = layered.obeyed(self, x_BTH, bias, turns, slots)
    drop = nn.Dropout(config.dropout_rate, deterministic=not train)
    attention = Attention(config, name="attention")
    y_BTH = attention(x_BTH, bias, train, prefix, changes)
    x_BTH = norm(config, "attention_norm")(x_BTH + drop(y_BTH))
    y_BTH = FeedForward(config, name="mlp")(x_BTH, changes)
    x_BTH = norm(config, "mlp_norm")(x_BTH + drop(y_BTH))
    return partition.placed(x_BTH, "batch", "length", "embed"), None

"""The parts of a decoder's block around its attention: norm and feed-forward.

Zhang and Sennrich, 2019, "Root Mean Square Layer Normalization"; Ba et al., 2016,
"Layer Normalization"; Shazeer, 2020, "GLU Variants Improve Transformer".
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import partitioning
from jaxtyping import Array, Float

from prompt_tuning.backbones.common.changes import Changes, changed
from prompt_tuning.backbones.common.linear import Dense
from prompt_tuning.backbones.decoder.config import DecoderConfig
from prompt_tuning.core import partition
from prompt_tuning.core.axes import along


class Norm(nn.Module):
  """x / rms(x) * scale, or (x - mean(x)) / std(x) * scale + bias, in float32."""

  config: DecoderConfig

  @nn.compact
  def __call__(self, x: Float[Array, "*X H"]) -> Float[Array, "*X H"]:
    config, wide = self.config, x.astype(jnp.float32)
    scale_H = self._vector("scale", nn.initializers.ones)
    if config.norm == "layer":
      wide = wide - wide.mean(-1, keepdims=True)
    mean = jnp.mean(jnp.square(wide), -1, keepdims=True)
    wide = wide * jax.lax.rsqrt(mean + config.norm_epsilon) * along(scale_H, wide)
    if config.norm == "layer":
      wide = wide + along(self._vector("bias", nn.initializers.zeros), wide)
    return wide.astype(config.dtype)

  def _vector(self, name: str, draw: Any) -> Float[Array, " H"]:
    shape = (self.config.emb_dim,)
    return partitioning.param_with_axes(name, draw, shape, axes=("embed",))


class FeedForward(nn.Module):
  """down(f(up(x))), or down(f(gate(x)) * up(x)).

  Kernels have the names of a T5: `wi` then `wo`, or `wi_0` (gate), `wi_1` (up), `wo`.
  """

  config: DecoderConfig

  @nn.compact
  def __call__(
    self, x_BTH: Float[Array, "B T H"], train: bool, changes: Changes | None = None
  ) -> Float[Array, "B T H"]:
    config, changes = self.config, changes or {}

    def dense(label: str, inner: str, x: Array, *sizes: int) -> Array:
      axes = ("mlp", "embed") if inner == "mlp.down" else ("embed", "mlp")
      kernel = Dense(*sizes, axes, config.dtype, bias=config.mlp_bias, name=label)
      return changed(x, kernel(x), changes.get(inner))

    H, F, f = config.emb_dim, config.mlp_dim, _FUNCTIONS[config.mlp_activation]
    if config.mlp_gated:
      gate_BTF = f(dense("wi_0", "mlp.gate", x_BTH, H, F))
      hidden_BTF = gate_BTF * dense("wi_1", "mlp.up", x_BTH, H, F)
    else:
      hidden_BTF = f(dense("wi", "mlp.up", x_BTH, H, F))
    hidden_BTF = partition.placed(hidden_BTF, "batch", "length", "mlp")
    drop = nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))
    hidden_BTF = drop(hidden_BTF, deterministic=not train)
    hidden_BTF = changed(hidden_BTF, hidden_BTF, changes.get("mlp.hidden"))
    self.sow("trace", "hidden", hidden_BTF)
    return dense("wo", "mlp.down", hidden_BTF, F, H)


_FUNCTIONS = {
  "silu": jax.nn.silu,
  "gelu": functools.partial(jax.nn.gelu, approximate=False),
  "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
  "relu": jax.nn.relu,
}

"""The parts of a T5 block around its attention: norm and feed-forward.

Parameter names, shapes and logical axes are T5X's, so that its checkpoints load by
name. Raffel et al., 2020, "Exploring the Limits of Transfer Learning with a Unified
Text-to-Text Transformer"; Shazeer, 2020, "GLU Variants Improve Transformer".
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import partitioning
from jaxtyping import Array, Float

from prompt_tuning.backbones.common.changes import Changes, changed
from prompt_tuning.backbones.common.linear import Dense
from prompt_tuning.backbones.t5.config import T5Config
from prompt_tuning.core import partition
from prompt_tuning.core.axes import along


class RMSNorm(nn.Module):
  """T5's layer norm: no mean, no bias; computed in float32."""

  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, "*X H"]) -> Float[Array, "*X H"]:
    scale_H = partitioning.param_with_axes(
      "scale", nn.initializers.ones, (x.shape[-1],), axes=("embed",)
    )
    wide = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide), -1, keepdims=True) + 1e-6)
    return (wide * inverse * along(scale_H, wide)).astype(self.dtype)


class FeedForward(nn.Module):
  """`wi` then `wo`, or the gated pair `wi_0` * `wi_1` then `wo`."""

  config: T5Config

  @nn.compact
  def __call__(
    self, x_BTH: Float[Array, "B T H"], train: bool, changes: Changes | None = None
  ) -> Array:
    config, changes = self.config, changes or {}
    activations = config.mlp_activations
    product = None
    for i, name in enumerate(activations):
      label = "wi" if len(activations) == 1 else f"wi_{i}"
      axes = "embed", "mlp"
      dense = Dense(config.emb_dim, config.mlp_dim, axes, config.dtype, name=label)
      # The last of them is "up": the only one, or the one beside the gate.
      inner = "mlp.up" if i + 1 == len(activations) else "mlp.gate"
      branch_BTF = changed(x_BTH, dense(x_BTH), changes.get(inner))
      branch_BTF = partition.placed(branch_BTF, "batch", "length", "mlp")
      branch_BTF = _ACTIVATIONS[name](branch_BTF)
      product = branch_BTF if product is None else product * branch_BTF
    product = nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))(
      product, deterministic=not train
    )
    product = changed(product, product, changes.get("mlp.hidden"))
    self.sow("trace", "hidden", product)
    axes = "mlp", "embed"
    out = Dense(config.mlp_dim, config.emb_dim, axes, config.dtype, name="wo")
    return changed(product, out(product), changes.get("mlp.down"))


_ACTIVATIONS = {
  "relu": jax.nn.relu,
  # The tanh form, which T5 1.1 and its descendants were trained with.
  "gelu": lambda x: jax.nn.gelu(x, approximate=True),
  "linear": lambda x: x,
}

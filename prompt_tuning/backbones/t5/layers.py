"""The parts of a T5 block around its attention: matrix, table, norm, feed-forward.

Parameter names, shapes and logical axes are T5X's, so that its checkpoints load by
name. Raffel et al., 2020, "Exploring the Limits of Transfer Learning with a Unified
Text-to-Text Transformer"; Shazeer, 2020, "GLU Variants Improve Transformer".
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import partitioning
from jaxtyping import Array, Float, Int

from prompt_tuning.backbones.t5 import int8
from prompt_tuning.backbones.t5.changes import Changes, changed
from prompt_tuning.backbones.t5.config import T5Config
from prompt_tuning.core import partition
from prompt_tuning.core.axes import along

_FAN_IN = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")


class Dense(nn.Module):
  """A kernel without bias, [inputs features], with logical axes."""

  inputs: int
  features: int
  axes: tuple[str, str]
  dtype: Any
  scale: float = 1.0

  def setup(self) -> None:
    def draw(key, shape):
      return self.scale * _FAN_IN(key, shape)

    stored = self.get_variable("params", "kernel")
    if isinstance(stored, int8.Quantised):
      self.kernel = stored
      return
    shape = (self.inputs, self.features)
    self.kernel = partitioning.param_with_axes("kernel", draw, shape, axes=self.axes)

  def __call__(self, x: Float[Array, "*X I"]) -> Float[Array, "*X O"]:
    if isinstance(self.kernel, int8.Quantised):
      return int8.product(x.astype(self.dtype), self.kernel)
    # Narrow factors with a wide product (the logits) stay narrow: a product in float32
    # has the same digits, and the kernel needs no copy in float32.
    same = x.dtype == self.kernel.dtype
    narrow = same and jnp.can_cast(x.dtype, self.dtype, "safe")
    dtype = x.dtype if narrow else self.dtype
    kernel_IO = self.whole(dtype)
    return jnp.matmul(x.astype(dtype), kernel_IO, preferred_element_type=self.dtype)

  def whole(self, dtype: Any) -> Float[Array, "I O"]:
    """The kernel, as a product takes it."""
    return partition.gathered(self.kernel.astype(dtype), *self.axes)


class Embedder(nn.Module):
  """The token table [V H], read by a gather."""

  config: T5Config

  def setup(self) -> None:
    stored = self.get_variable("params", "embedding")
    if isinstance(stored, int8.Quantised):
      self.embedding = stored
      return
    self.embedding = partitioning.param_with_axes(
      "embedding",
      nn.initializers.normal(1.0),
      (self.config.vocab_size, self.config.emb_dim),
      axes=("vocab", "embed"),
    )

  def __call__(self, ids: Int[Array, "*X"]) -> Float[Array, "*X H"]:
    if isinstance(self.embedding, int8.Quantised):
      return int8.rows(self.embedding, ids, self.config.dtype)
    return jnp.take(self.embedding, ids, axis=0).astype(self.config.dtype)

  def attend(self, states: Float[Array, "*X H"]) -> Float[Array, "*X V"]:
    states = states.astype(self.config.dtype)
    if isinstance(self.embedding, int8.Quantised):
      kernel_HV = int8.transposed(self.embedding)
      return int8.product(states, kernel_HV).astype(jnp.float32)
    table_VH = self.embedding.astype(self.config.dtype)
    table_VH = partition.gathered(table_VH, "vocab", "embed")
    return (states @ table_VH.T).astype(jnp.float32)


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
    axes = "mlp", "embed"
    out = Dense(config.mlp_dim, config.emb_dim, axes, config.dtype, name="wo")
    return changed(product, out(product), changes.get("mlp.down"))


_ACTIVATIONS = {
  "relu": jax.nn.relu,
  # The tanh form, which T5 1.1 and its descendants were trained with.
  "gelu": lambda x: jax.nn.gelu(x, approximate=True),
  "linear": lambda x: x,
}

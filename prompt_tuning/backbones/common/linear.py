"""A matrix and a token table, held as floats or as int8.

Names and logical axes of parameters are T5X's.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.linen import partitioning
from jaxtyping import Array, Float, Int

from prompt_tuning.backbones.common import int8
from prompt_tuning.core import partition
from prompt_tuning.core.axes import along

_FAN_IN = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")


class Dense(nn.Module):
  """A kernel [inputs features] with logical axes, and a bias if asked for."""

  inputs: int
  features: int
  axes: tuple[str, str]
  dtype: Any
  scale: float = 1.0
  bias: bool = False

  def setup(self) -> None:
    def draw(key, shape):
      return self.scale * _FAN_IN(key, shape)

    if self.bias:
      zeros, axes = nn.initializers.zeros, self.axes[1:]
      name, shape = "bias", (self.features,)
      self.added = partitioning.param_with_axes(name, zeros, shape, axes=axes)
    stored = self.get_variable("params", "kernel")
    if isinstance(stored, int8.Quantised):
      self.kernel = stored
      return
    shape = (self.inputs, self.features)
    self.kernel = partitioning.param_with_axes("kernel", draw, shape, axes=self.axes)

  def __call__(self, x: Float[Array, "*X I"]) -> Float[Array, "*X O"]:
    y = self._product(x)
    return y + along(self.added.astype(y.dtype), y) if self.bias else y

  def _product(self, x: Float[Array, "*X I"]) -> Float[Array, "*X O"]:
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
  """The token table [V H], or one of positions, read by a gather.

  Attributes:
    vocabulary: V. width: H. dtype: of what is read.
    axis: what the rows are called. stddev: of the first draw.
  """

  vocabulary: int
  width: int
  dtype: Any
  axis: str = "vocab"
  stddev: float = 1.0

  def setup(self) -> None:
    stored = self.get_variable("params", "embedding")
    if isinstance(stored, int8.Quantised):
      self.embedding = stored
      return
    self.embedding = partitioning.param_with_axes(
      "embedding",
      nn.initializers.normal(self.stddev),
      (self.vocabulary, self.width),
      axes=(self.axis, "embed"),
    )

  def __call__(self, ids: Int[Array, "*X"]) -> Float[Array, "*X H"]:
    if isinstance(self.embedding, int8.Quantised):
      return int8.rows(self.embedding, ids, self.dtype)
    return jnp.take(self.embedding, ids, axis=0).astype(self.dtype)

  def attend(self, states: Float[Array, "*X H"]) -> Float[Array, "*X V"]:
    states = states.astype(self.dtype)
    if isinstance(self.embedding, int8.Quantised):
      kernel_HV = int8.transposed(self.embedding)
      return int8.product(states, kernel_HV).astype(jnp.float32)
    table_VH = self.embedding.astype(self.dtype)
    table_VH = partition.gathered(table_VH, "vocab", "embed")
    return (states @ table_VH.T).astype(jnp.float32)

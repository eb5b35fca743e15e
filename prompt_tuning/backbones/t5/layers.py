"""The parts of a T5 block: norm, relative positions, attention, feed-forward.

Parameter names, shapes and logical axes are T5X's, so that its checkpoints load by
name. Raffel et al., 2020, "Exploring the Limits of Transfer Learning with a Unified
Text-to-Text Transformer"; Shazeer, 2020, "GLU Variants Improve Transformer".
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import partitioning
from jaxtyping import Array, Bool, Float, Int

from prompt_tuning.backbones.t5 import fused, int8
from prompt_tuning.backbones.t5.config import T5Config
from prompt_tuning.core import partition

_FAN_IN = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
# Added where attention is forbidden; finite, so that a row with no key stays finite.
MASKED = -1e10


class Dense(nn.Module):
  """A kernel without bias, [inputs features], with logical axes."""

  features: int
  axes: tuple[str, str]
  dtype: Any
  scale: float = 1.0

  @nn.compact
  def __call__(self, x: Float[Array, "*X I"]) -> Float[Array, "*X O"]:
    def draw(key, shape):
      return self.scale * _FAN_IN(key, shape)

    stored = self.get_variable("params", "kernel")
    if isinstance(stored, int8.Quantised):
      return int8.product(x.astype(self.dtype), stored)
    shape = (x.shape[-1], self.features)
    kernel_IO = partitioning.param_with_axes("kernel", draw, shape, axes=self.axes)
    # Narrow factors with a wide product (the logits) stay narrow: a product in float32
    # has the same digits, and the kernel needs no copy in float32.
    narrow = x.dtype == kernel_IO.dtype and jnp.can_cast(x.dtype, self.dtype, "safe")
    if not narrow:
      x, kernel_IO = x.astype(self.dtype), kernel_IO.astype(self.dtype)
    kernel_IO = partition.gathered(kernel_IO, *self.axes)
    return jnp.matmul(x, kernel_IO, preferred_element_type=self.dtype)


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
    return (wide * inverse * scale_H).astype(self.dtype)


def relative_bucket(
  distance: Int[Array, "*X"], bidirectional: bool, buckets: int, farthest: int
) -> Int[Array, "*X"]:
  """Bucket of key position minus query position: exact when near, logarithmic far."""
  offset = jnp.zeros_like(distance)
  backward = -distance
  if bidirectional:
    buckets //= 2
    offset = (backward < 0) * buckets
    backward = jnp.abs(backward)
  else:
    backward = jnp.maximum(backward, 0)
  exact = buckets // 2
  # The small term keeps the logarithm finite at 0, where `exact` decides anyway.
  ratio = jnp.log(backward.astype(jnp.float32) / exact + 1e-6)
  steps = ratio / math.log(farthest / exact) * (buckets - exact)
  far = jnp.minimum(exact + steps.astype(jnp.int32), buckets - 1)
  return offset + jnp.where(backward < exact, backward, far)


class RelativeBias(nn.Module):
  """One learned bias per head and bucket, shared by all layers of a stack."""

  config: T5Config
  bidirectional: bool

  @nn.compact
  def __call__(
    self, queries_BQ: Int[Array, "#B Q"], keys_T: Int[Array, " T"]
  ) -> Float[Array, "#B N Q T"]:
    """The bias between query and key positions; callers compute it once a pass."""
    table_NX = partitioning.param_with_axes(
      "rel_embedding",
      nn.initializers.variance_scaling(1.0, "fan_avg", "uniform"),
      (self.config.num_heads, self.config.relative_buckets),
      axes=("heads", "relpos_buckets"),
    )
    bucket_BQT = relative_bucket(
      keys_T - queries_BQ[..., None],
      self.bidirectional,
      self.config.relative_buckets,
      self.config.relative_max_distance,
    )
    return jax.lax.platform_dependent(
      table_NX, bucket_BQT, default=looked_up, tpu=looked_up_by_product
    )


def looked_up(
  table_NX: Float[Array, "N X"], bucket_BQT: Int[Array, "#B Q T"]
) -> Float[Array, "#B N Q T"]:
  """Each head's entry of a bucket, in float32."""
  bias_NBQT = jnp.take(table_NX, bucket_BQT, axis=1)
  return bias_NBQT.swapaxes(0, 1).astype(jnp.float32)


def looked_up_by_product(
  table_NX: Float[Array, "N X"], bucket_BQT: Int[Array, "#B Q T"]
) -> Float[Array, "#B N Q T"]:
  """The same by ones and zeros, which would fill the memory of other devices.

  A TPU gathers entries one after another, and its compiler spends half a minute on
  their arrangement at T5 XXL's size; with ones and zeros, neither.
  """
  one_BQTX = jax.nn.one_hot(bucket_BQT, table_NX.shape[1], dtype=table_NX.dtype)
  return jnp.einsum(
    "nx,bqtx->bnqt",
    table_NX,
    one_BQTX,
    precision=jax.lax.Precision.HIGHEST,
    preferred_element_type=jnp.float32,
  )


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
  logits_BNQT = logits_BNQT.astype(jnp.float32)
  if bias is not None:
    logits_BNQT += bias
  weights_BNQT = jax.nn.softmax(logits_BNQT).astype(value_BTND.dtype)
  if drop is not None:
    weights_BNQT = drop(weights_BNQT)
  return jnp.einsum("BNQT,BNTD->BNQD", weights_BNQT, value_BNTD).swapaxes(1, 2)


class Attention(nn.Module):
  """Multi-head attention with T5X's parameter names."""

  config: T5Config

  def setup(self) -> None:
    config = self.config
    joined = config.num_heads * config.head_dim

    def projection(scale: float = 1.0) -> Dense:
      return Dense(joined, ("embed", "joined_kv"), config.dtype, scale)

    # Folding 1/sqrt(D) into the first draw is how T5 does without a scale.
    self.query = projection(config.head_dim**-0.5)
    self.key = projection()
    self.value = projection()
    self.out = Dense(config.emb_dim, ("joined_kv", "embed"), config.dtype)
    self.dropout = nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))

  def _heads(self, x: Float[Array, "B T J"]) -> Float[Array, "B T N D"]:
    x = x.reshape(*x.shape[:2], self.config.num_heads, self.config.head_dim)
    return partition.placed(x, "batch", "length", "heads", "kv")

  def keys_values(self, y_BTH: Float[Array, "B T H"]) -> tuple[Array, Array]:
    """Keys and values [B T N D] of a sequence."""
    return self._heads(self.key(y_BTH)), self._heads(self.value(y_BTH))

  def __call__(
    self,
    x_BQH: Float[Array, "B Q H"],
    keys_values: tuple[Array, Array],
    bias: Float[Array, "#B #N #Q T"] | None,
    train: bool,
  ) -> Float[Array, "B Q H"]:
    """What the queries read; the bias is one of `fused.bias_of`."""
    query_BQND = self._heads(self.query(x_BQH))
    kind = self.config.attention
    if fused.chosen(kind, x_BQH.shape[1]):
      mixed_BQND = fused.attend(query_BQND, *keys_values, bias, kind)
      return self.out(mixed_BQND.reshape(*mixed_BQND.shape[:2], -1))
    drop = None
    if train and self.config.dropout_rate:

      def drop(weights):
        return self.dropout(weights, deterministic=False)

    mixed_BQND = attend(query_BQND, *keys_values, bias, drop)
    return self.out(mixed_BQND.reshape(*mixed_BQND.shape[:2], -1))


class FeedForward(nn.Module):
  """`wi` then `wo`, or the gated pair `wi_0` * `wi_1` then `wo`."""

  config: T5Config

  @nn.compact
  def __call__(self, x_BTH: Float[Array, "B T H"], train: bool) -> Array:
    config = self.config
    activations = config.mlp_activations
    product = None
    for i, name in enumerate(activations):
      label = "wi" if len(activations) == 1 else f"wi_{i}"
      dense = Dense(config.mlp_dim, ("embed", "mlp"), config.dtype, name=label)
      branch_BTF = partition.placed(dense(x_BTH), "batch", "length", "mlp")
      branch_BTF = _ACTIVATIONS[name](branch_BTF)
      product = branch_BTF if product is None else product * branch_BTF
    product = nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))(
      product, deterministic=not train
    )
    return Dense(config.emb_dim, ("mlp", "embed"), config.dtype, name="wo")(product)


_ACTIVATIONS = {
  "relu": jax.nn.relu,
  # The tanh form, which T5 1.1 and its descendants were trained with.
  "gelu": lambda x: jax.nn.gelu(x, approximate=True),
  "linear": lambda x: x,
}


def mask_bias(allowed: Bool[Array, "*X"]) -> Float[Array, "*X"]:
  """0 where attention is allowed, a large negative number elsewhere."""
  return jnp.where(allowed, 0.0, MASKED).astype(jnp.float32)


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

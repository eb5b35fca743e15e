"""Attention of a T5: relative positions, and what is read by which way.

Parameter names, shapes and logical axes are T5X's, so that its checkpoints load by
name. Raffel et al., 2020, "Exploring the Limits of Transfer Learning with a Unified
Text-to-Text Transformer".
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import partitioning
from jaxtyping import Array, Float, Int

from prompt_tuning.backbones.common import fused, int8
from prompt_tuning.backbones.common.attend import attend, attend_folded
from prompt_tuning.backbones.common.changes import Changes, changed
from prompt_tuning.backbones.common.prefix import joined
from prompt_tuning.backbones.t5.config import T5Config
from prompt_tuning.backbones.t5.layers import Dense
from prompt_tuning.core import partition


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
      keys_T[None, None] - queries_BQ[..., None],
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


class Attention(nn.Module):
  """Multi-head attention with T5X's parameter names.

  Attributes:
    config: the architecture.
    kind: "self" or "cross", what changes of its kernels are called.
  """

  config: T5Config
  kind: str = "self"

  def setup(self) -> None:
    config = self.config
    J = config.num_heads * config.head_dim

    def projection(scale: float = 1.0) -> Dense:
      axes = "embed", "joined_kv"
      return Dense(config.emb_dim, J, axes, config.dtype, scale)

    # Folding 1/sqrt(D) into the first draw is how T5 does without a scale.
    self.query = projection(config.head_dim**-0.5)
    self.key = projection()
    self.value = projection()
    self.out = Dense(J, config.emb_dim, ("joined_kv", "embed"), config.dtype)
    self.dropout = nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))

  def _heads(self, x: Float[Array, "B T J"]) -> Float[Array, "B T N D"]:
    x = x.reshape(*x.shape[:2], self.config.num_heads, self.config.head_dim)
    return partition.placed(x, "batch", "length", "heads", "kv")

  def keys_values(
    self, y_BTH: Float[Array, "B T H"], changes: Changes | None = None
  ) -> tuple[Array, Array]:
    """Keys and values [B T N D] of a sequence."""
    names = "key", "value"
    return tuple(self._heads(self._changed(name, y_BTH, changes)) for name in names)

  def _changed(self, name: str, x: Array, changes: Changes | None) -> Array:
    """What the kernel of a name gives, with what a prompt changes of it."""
    y = getattr(self, name)(x)
    return changed(x, y, changes.get(f"{self.kind}.{name}")) if changes else y

  def __call__(
    self,
    x_BQH: Float[Array, "B Q H"],
    keys_values: tuple[Array, Array],
    bias: Float[Array, "#B #N #Q T"] | None,
    train: bool,
    changes: Changes | None = None,
  ) -> Float[Array, "B Q H"]:
    """What the queries read; the bias is one of `fused.bias_of`."""
    query_BQND = self._heads(self._changed("query", x_BQH, changes))
    kind = self.config.attention
    if fused.chosen(kind, x_BQH.shape[1]):
      mixed_BQND = fused.attend(query_BQND, *keys_values, bias, kind)
    else:
      mixed_BQND = attend(query_BQND, *keys_values, bias, self._drop(train))
    return self._out(mixed_BQND, changes)

  def read(
    self,
    x_BQH: Float[Array, "B Q H"],
    source_BTH: Float[Array, "B T H"],
    bias: Float[Array, "#B #N #Q X"],
    train: bool,
    changes: Changes | None = None,
    prefix: tuple[Array, Array] | None = None,
  ) -> Float[Array, "B Q H"]:
    """What the queries read in another sequence, by whichever way is the shorter.

    With a prefix in front of its keys and values, or changes of them, there is only one
    way.
    """
    if changes or prefix or not self.folds(x_BQH.shape[1], source_BTH.shape[1]):
      keys_values = joined(prefix, self.keys_values(source_BTH, changes))
      return self(x_BQH, keys_values, bias, train, changes)
    query_BQND = self._heads(self.query(x_BQH))
    kernels = (dense.whole(self.config.dtype) for dense in (self.key, self.value))
    drop = self._drop(train)
    return self._out(attend_folded(query_BQND, source_BTH, *kernels, bias, drop))

  def folds(self, queries: int, length: Any) -> bool:
    """Whether `attend_folded` takes at most half of the arithmetic of `attend`.

    At more than half it is no faster, since its products are smaller. int8 matrices
    are read by their own product, the usual way.

    Args:
      queries: Q. length: T, which may be a symbol where a program is exported; it then
        counts as long, since of short ones either way takes little.
    """
    if isinstance(self.key.kernel, int8.Quantised):
      return False
    Q, T, H, D = queries, length, self.config.emb_dim, self.config.head_dim
    # Multiplications of the keys and the values of one head: `each` for every position
    # of the source, and those of the queries, which are made once.
    each, once = H * D + Q * D - 2 * Q * H, 2 * Q * D * H
    return once <= T * each if isinstance(T, int) else each > 0

  def _drop(self, train: bool) -> Any:
    if not (train and self.config.dropout_rate):
      return None
    return lambda weights: self.dropout(weights, deterministic=False)

  def _out(
    self, mixed_BQND: Float[Array, "B Q N D"], changes: Changes | None = None
  ) -> Float[Array, "B Q H"]:
    mixed_BQJ = mixed_BQND.reshape(*mixed_BQND.shape[:2], -1)
    return self._changed("out", mixed_BQJ, changes)

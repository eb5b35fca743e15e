"""One vector an example, from what the frozen backbone says of its tokens.

`Embeddings` reads the token embeddings, `Encoding` the frozen encoder's output on the
unprompted input (IDPG, Wu et al., 2022). T5 has no [CLS], so the pool is chosen:

  mean       sum_t m_t x_t / max(1, sum_t m_t)
  last       the last real token (the end mark)
  first      the first token
  max        of each channel the largest over real tokens (ATTEMPT, Asai et al., 2022)
  attention  softmax over real t of x_t . q, q trained [C]
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from prompt_tuning.blocks.norms import unit_rms
from prompt_tuning.core.context import Code, Context, Spec, masked_mean, pooled
from prompt_tuning.core.prompt import weight
from prompt_tuning.inits import uniform

POOLS = ("mean", "last", "first", "max", "attention")


class _Pooled(nn.Module):
  """Attributes:
  pool: one of `POOLS`.
  normalize: divide the vector by its root mean square, so that generators see one
    scale whatever the backbone's.
  """

  pool: str = "mean"
  normalize: bool = True

  def __post_init__(self) -> None:
    if self.pool not in POOLS:
      raise ValueError(f"`pool` must be one of {POOLS}, got {self.pool!r}.")
    super().__post_init__()

  def _read(
    self,
    values_RTC: Float[Array, "R T C"],
    mask_RT: Bool[Array, "R T"],
    spec: Spec,
  ) -> Code:
    values_RTC = values_RTC.astype(jnp.float32)
    if self.pool == "mean":
      vector_RC = masked_mean(values_RTC, mask_RT)
    elif self.pool == "first":
      vector_RC = values_RTC[:, 0]
    elif self.pool == "max":
      largest_RC = jnp.where(mask_RT[..., None], values_RTC, -jnp.inf).max(1)
      vector_RC = jnp.where(mask_RT.any(1, keepdims=True), largest_RC, 0)
    elif self.pool == "last":
      last_R = jnp.maximum(mask_RT.sum(1) - 1, 0)
      vector_RC = jnp.take_along_axis(values_RTC, last_R[:, None, None], 1)[:, 0]
    else:
      shape = (values_RTC.shape[-1],)
      query_C = weight(self, "query", uniform.normal(0.02), shape, spec, ("embed",))
      scores_RT = jnp.where(mask_RT, values_RTC @ query_C, -1e10)
      vector_RC = jnp.einsum("RT,RTC->RC", jax.nn.softmax(scores_RT), values_RTC)
    if self.normalize:
      vector_RC = unit_rms(vector_RC)
    return pooled(vector_RC)


class Embeddings(_Pooled):
  """Reads the frozen token embeddings: no second pass of the encoder."""

  needs: ClassVar[frozenset[str]] = frozenset()

  @nn.compact
  def __call__(self, context: Context, spec: Spec, train: bool = False) -> Code:
    return self._read(context.embeddings, context.mask, spec)


class Encoding(_Pooled):
  """Reads the frozen encoder's output, which costs a second pass of it."""

  needs: ClassVar[frozenset[str]] = frozenset({"encoding"})

  @property
  def once(self) -> bool:
    """Whether nothing that trains has a part in the code; a query has."""
    return self.pool != "attention"

  @nn.compact
  def __call__(self, context: Context, spec: Spec, train: bool = False) -> Code:
    return self._read(context.encoding, context.mask, spec)

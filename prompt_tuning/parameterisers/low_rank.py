"""Low-rank prompts: each table [P H] is stored as two thin factors.

  prompt[G P H] = left[G P R] @ right[G R H]         trains G * R * (P + H)

Xiao et al., 2023, "Decomposed Prompt Tuning via Low-Rank Reparameterization"; as an
offset of embeddings, Shi and Lipani, 2024, "DePT: Decomposed Prompt Tuning for
Parameter-Efficient Fine-tuning". A table of rank min(P, H) can be any table.
"""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from prompt_tuning.core.context import Spec
from prompt_tuning.core.prompt import Drawn, Initializer, Shape, weight


class LowRank(nn.Module):
  """Tables shared by the whole batch.

  Attributes:
    rank: R, the width of both factors, from 1 to min(P, H).
    initializer: draws left [G P R].
    right_initializer: draws right [G R H]; None for the same as left.
    table_initializer: draws a table [G P H] whose best approximation of rank R both
      factors start from, in place of the two above; None for those.
  """

  reads_code: ClassVar[bool] = False
  rank: int
  initializer: Initializer
  right_initializer: Initializer | None = None
  table_initializer: Initializer | None = None

  @nn.compact
  def __call__(
    self, code: None, shape: Shape, spec: Spec, train: bool = False
  ) -> Drawn:
    G, P, H = shape
    check_rank(self.rank, P, H)
    # None if loaded, where nothing is drawn.
    left, right = self.initializer, self.right_initializer or self.initializer
    if self.table_initializer is not None and self.is_initializing():
      table = self.table_initializer(self.make_rng("params"), shape, spec)
      left, right = (_given(factor) for factor in halves(table, self.rank))
    left_axes, right_axes = ("tables", "prompt", None), ("tables", None, "embed")
    R = self.rank
    left_GPR = weight(self, "left", left, (G, P, R), spec, left_axes)
    right_GRH = weight(self, "right", right, (G, R, H), spec, right_axes)
    return Drawn(jnp.einsum("GPR,GRH->GPH", left_GPR, right_GRH)[None])


def halves(
  table_GPH: Float[Array, "G P H"], R: int
) -> tuple[Float[Array, "G P R"], Float[Array, "G R H"]]:
  """Factors whose product is nearest to a table, both with the root of its values."""
  left_GPX, values_GX, right_GXH = jnp.linalg.svd(table_GPH, full_matrices=False)
  roots_GR = jnp.sqrt(values_GX[:, :R])
  return left_GPX[..., :R] * roots_GR[:, None], roots_GR[..., None] * right_GXH[:, :R]


def _given(value: Array) -> Initializer:
  return lambda key, shape, spec: value


def check_rank(rank: int, P: int, H: int, argument: str = "LowRank.rank") -> None:
  """Raises ValueError for a rank that no table [P H] has."""
  whole = isinstance(rank, int) and not isinstance(rank, bool)
  if not whole or not 1 <= rank <= min(P, H):
    raise ValueError(
      f"`{argument}` (RANK) must be a whole number from 1 to min(P, H) = "
      f"min({P}, {H}), got {rank!r}. Lower it: a table of that size says as much, and "
      "is cheaper (`dense.Dense`, or `task_tables.Gather` for one a task)."
    )

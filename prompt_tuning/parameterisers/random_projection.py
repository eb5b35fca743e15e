"""A thin table through a fixed random projection: Z = (table R) * s + c.

  table[G P K] trains, R[K H] is drawn from a seed and kept nowhere, s[H] and c[H] train

Trains G P K + 2 H. Wu et al., 2025, "ULPT: Prompt Tuning with Ultra-Low-Dimensional
Optimization" (arXiv 2502.04501), section 3.
"""

from typing import ClassVar

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from prompt_tuning.core.context import Spec
from prompt_tuning.core.prompt import Drawn, Initializer, Shape, weight
from prompt_tuning.inits import uniform


class RandomProjection(nn.Module):
  """Tables shared by the whole batch.

  Attributes:
    rank: K, from 1. seed: of R, a whole number below 2^32.
    initializer: draws the thin table.
  """

  reads_code: ClassVar[bool] = False
  rank: int
  seed: int = 0
  initializer: Initializer = uniform.normal(1.0)

  def __post_init__(self) -> None:
    if self.rank < 1 or not 0 <= self.seed < 2**32:
      raise ValueError(
        "`RandomProjection.rank` must be at least 1 and `seed` from 0 to 2^32 - 1, got "
        f"{self.rank} and {self.seed}."
      )
    super().__post_init__()

  @nn.compact
  def __call__(
    self, code: None, shape: Shape, spec: Spec, train: bool = False
  ) -> Drawn:
    G, P, H = shape
    axes = ("tables", "prompt", None)
    table_GPK = weight(self, "table", self.initializer, (G, P, self.rank), spec, axes)
    scale_H = weight(self, "scale", uniform.ones(), (H,), spec, ("embed",))
    shift_H = weight(self, "shift", uniform.zeros(), (H,), spec, ("embed",))
    made_GPH = table_GPK @ fixed(self.seed, self.rank, H)
    return Drawn((made_GPH * scale_H[None, None] + shift_H[None, None])[None])


def fixed(seed: int, rank: int, width: int) -> Float[Array, "K H"]:
  """The fixed factor of a seed, the same whatever a process has set."""
  with jax.threefry_partitionable(True):
    key = jax.random.key(seed, impl="threefry2x32")
    return jax.random.normal(key, (rank, width))

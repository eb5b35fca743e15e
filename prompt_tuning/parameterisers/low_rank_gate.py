"""A static table under a gate of low rank that reads the input.

  Z = table * g sigmoid(u v^T),   u[P k] and v[H k] of tanh(drop(h) W1 + b1) W2 + b2

trains GPH + 2 (C r + r) + (r + 1) GP k + (r + 1) GH k. Jain et al., 2024, "Prompt
Tuning Strikes Back: Customizing Foundation Models with Low-Rank Prompt Adaptation"
(LoPA). The paper's g is 1, so that a run starts at half of the table; g = 2, our
choice, starts at the table.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from prompt_tuning.blocks.linear import linear
from prompt_tuning.core.context import Code, Spec, masked_mean
from prompt_tuning.core.prompt import AXES, Drawn, Initializer, Shape, weight
from prompt_tuning.inits import uniform


class LowRankGate(nn.Module):
  """Gate and table.

  Attributes:
    width: r, of both heads. rank: k, of the gate before the sigmoid.
    scale: g. dropout_rate: on the code.
    initializer: draws the heads' kernels. table_initializer: draws the table [G P H].
  """

  reads_code: ClassVar[bool] = True
  width: int
  rank: int
  scale: float = 2.0
  dropout_rate: float = 0.0
  initializer: Initializer = uniform.normal(0.02)
  table_initializer: Initializer = uniform.normal(1.0)

  def __post_init__(self) -> None:
    if self.width < 1 or self.rank < 1:
      raise ValueError(
        "`LowRankGate.width` and `rank` must be at least 1, got "
        f"{self.width} and {self.rank}."
      )
    super().__post_init__()

  @nn.compact
  def __call__(
    self, code: Code, shape: Shape, spec: Spec, train: bool = False
  ) -> Drawn:
    G, P, H = shape
    mean_RC = masked_mean(code.values, code.mask)
    drop = nn.Dropout(self.dropout_rate, deterministic=not train)

    def head(name: str, size: int) -> jax.Array:
      given = drop(mean_RC), self.width, self.initializer, spec
      hidden_RF = jnp.tanh(linear(self, f"{name}_down", *given))
      made = linear(
        self, f"{name}_up", hidden_RF, G * size * self.rank, self.initializer, spec
      )
      return made.reshape(-1, G, size, self.rank)

    table_GPH = weight(self, "table", self.table_initializer, shape, spec, AXES)
    gate = jnp.einsum("RGPK,RGHK->RGPH", head("left", P), head("right", H))
    return Drawn(table_GPH[None] * self.scale * jax.nn.sigmoid(gate))

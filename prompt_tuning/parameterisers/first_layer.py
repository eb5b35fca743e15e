"""A generator for the first tables of a place, such as a layer's keys and values.

IPT's prefix mode (arXiv 2206.01958): what is generated acts in the first layer alone,
on top of a static prefix in all of them (`transforms.add_table`). The word inside makes
`tables` tables side by side, one vector [tables H] a position; the rest are zeros.
"""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from prompt_tuning.core.context import Code, Spec
from prompt_tuning.core.prompt import Drawn, Shape


class FirstTables(nn.Module):
  """Some of G tables.

  Attributes:
    inner: a parameteriser that reads the code. tables: how many, from 1 to G.
  """

  reads_code: ClassVar[bool] = True
  inner: nn.Module
  tables: int = 2

  def __call__(
    self, code: Code, shape: Shape, spec: Spec, train: bool = False
  ) -> Drawn:
    G, P, H = shape
    if not 1 <= self.tables <= G:
      raise ValueError(
        f"`FirstTables.tables` is {self.tables}, but the place has {G} tables. Name "
        "from 1 to that many."
      )
    drawn = self.inner(code, (1, P, self.tables * H), spec, train)
    made = drawn.prompt.reshape(-1, P, self.tables, H).swapaxes(1, 2)
    rest = (0, 0), (0, G - self.tables), (0, 0), (0, 0)
    return Drawn(jnp.pad(made, rest), drawn.mask)

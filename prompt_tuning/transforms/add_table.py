"""A static table under the generated prompt: Z = table + scale * prompt.

IPT on top of a task prompt, "add" (arXiv 2206.01958, where prefixes use scale 0.05).
Trains G * P * H. With scale 0, or a prompt of zeros, Z is the static prompt exactly.
"""

import flax.linen as nn
import jax.numpy as jnp

from prompt_tuning.core.context import Code, Spec
from prompt_tuning.core.prompt import AXES, Drawn, Initializer, weight


class AddTable(nn.Module):
  """Adds a trainable table.

  Attributes:
    initializer: draws the table [G P H]. scale: of what was generated.
  """

  initializer: Initializer
  scale: float = 1.0

  @nn.compact
  def __call__(
    self, drawn: Drawn, code: Code | None, spec: Spec, train: bool = False
  ) -> Drawn:
    shape = drawn.prompt.shape[1:]
    table_GPH = weight(self, "table", self.initializer, shape, spec, AXES)
    added = drawn.prompt
    if drawn.mask is not None:
      # A slot without a token of its own still holds the task's row.
      added = jnp.where(drawn.mask[:, None, :, None], added, 0)
    return Drawn(table_GPH[None] + self.scale * added)

"""The code's own vectors are the prompt: position p takes vector p.

Trains nothing itself. IPT's Random and Pretrained strategies (arXiv 2206.01958) are
`token_lookup` followed by this.
"""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from prompt_tuning.core.context import Code, Spec
from prompt_tuning.core.prompt import Drawn, Shape


class Rows(nn.Module):
  """Z = A; a position without a token is masked."""

  reads_code: ClassVar[bool] = True

  def __call__(
    self, code: Code, shape: Shape, spec: Spec, train: bool = False
  ) -> Drawn:
    G, P, H = shape
    R, Q, C = code.values.shape
    if (G, Q, C) != (1, P, H):
      raise ValueError(
        f"`Rows` turns [{Q} {C}] vectors an example into one table [{P} {H}]; the site "
        f"asks for {G} tables. Give the condition {P} vectors of width {H}."
      )
    values_RQC = jnp.where(code.mask[..., None], code.values, 0)
    return Drawn(values_RQC[:, None], code.mask)

"""The rows of a prompt read as a sequence by bidirectional LSTMs.

Liu et al., 2021, "GPT Understands, Too" (P-tuning): each row then hangs on all others.
With H / 2 units a direction and two layers it trains 12 H^2 + 16 H.
"""

import flax.linen as nn
import jax.numpy as jnp

from prompt_tuning.blocks.lstm import BiLstm
from prompt_tuning.core.context import Code, Spec
from prompt_tuning.core.prompt import Drawn


class RowsLstm(nn.Module):
  """Layers of width H.

  Attributes:
    layers: one above the other, from 1.
  """

  layers: int = 2

  @nn.compact
  def __call__(
    self, drawn: Drawn, code: Code | None, spec: Spec, train: bool = False
  ) -> Drawn:
    R, G, P, H = drawn.prompt.shape
    if self.layers < 1 or H % 2:
      raise ValueError(
        f"`RowsLstm.layers` must be at least 1, got {self.layers}, and the width of "
        f"the prompt even, got {H}: each direction makes half of it."
      )
    found_XPH = drawn.prompt.reshape(R * G, P, H)
    mask_XP = jnp.ones((R * G, P), bool)
    if drawn.mask is not None:
      mask_XP = jnp.repeat(jnp.broadcast_to(drawn.mask, (R, P)), G, axis=0)
    for number in range(self.layers):
      found_XPH, _ = BiLstm(H // 2, name=f"layer_{number}")(found_XPH, mask_XP, spec)
    return Drawn(found_XPH.reshape(R, G, P, H), drawn.mask)

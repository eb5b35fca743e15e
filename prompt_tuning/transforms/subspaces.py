"""Several bottlenecks over a prompt, mixed by a gate of each row.

  G_j = prompt + GELU(prompt D_j) U_j,   Z = sum_j softmax_j(prompt Wg) G_j

Trains M (2 H b + H). Lan et al., 2025, "Efficient Prompt Tuning by Multi-Space
Projection and Prompt Fusion" (EPT, arXiv 2405.11464), of which no code is public: the
layer's form, and a gate for each row in place of one for the task, are our reading. U
and Wg start at zero, where Z is the prompt; the D_j are drawn apart, or the spaces
would stay equal for ever.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from prompt_tuning.blocks.linear import kernel
from prompt_tuning.core.context import Code, Spec
from prompt_tuning.core.prompt import Drawn, Initializer, weight
from prompt_tuning.inits import uniform


class Subspaces(nn.Module):
  """M spaces.

  Attributes:
    spaces: M, from 1. width: b, of each bottleneck.
    initializer: draws D [M H b]; None for U(+-1 / sqrt(H)).
  """

  spaces: int = 3
  width: int = 8
  initializer: Initializer | None = None

  @nn.compact
  def __call__(
    self, drawn: Drawn, code: Code | None, spec: Spec, train: bool = False
  ) -> Drawn:
    if self.spaces < 1 or self.width < 1:
      raise ValueError(
        "`Subspaces.spaces` and `width` must be at least 1, got "
        f"{self.spaces} and {self.width}."
      )
    H, M, b = drawn.prompt.shape[-1], self.spaces, self.width
    down_MHF = kernel(self, "down", (M, H, b), self.initializer, spec, None)
    up_MFH = weight(self, "up", uniform.zeros(), (M, b, H), spec)
    gate_HM = weight(self, "gate", uniform.zeros(), (H, M), spec)
    inner = jax.nn.gelu(
      jnp.einsum("...H,MHF->...MF", drawn.prompt, down_MHF), approximate=False
    )
    made = drawn.prompt[..., None, :] + jnp.einsum("...MF,MFH->...MH", inner, up_MFH)
    shares = jax.nn.softmax(drawn.prompt @ gate_HM)
    return Drawn(jnp.einsum("...M,...MH->...H", shares, made), drawn.mask)

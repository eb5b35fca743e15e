"""Every row of a prompt through two layers: Z = ReLU(prompt W1 + b1) W2 + b2.

Trains 2 H^2 + 2 H. The head of P-tuning's prompt encoder (Liu et al., 2021, "GPT
Understands, Too"), and the base prompt of IPL (arXiv 2201.07126).
"""

import flax.linen as nn
import jax

from prompt_tuning.blocks.linear import linear
from prompt_tuning.core.context import Code, Spec
from prompt_tuning.core.prompt import Drawn, Initializer


class RowsMlp(nn.Module):
  """Two layers of the prompt's own width.

  Attributes:
    initializer: draws both kernels; None for the framework's default.
  """

  initializer: Initializer | None = None

  @nn.compact
  def __call__(
    self, drawn: Drawn, code: Code | None, spec: Spec, train: bool = False
  ) -> Drawn:
    H = drawn.prompt.shape[-1]
    hidden = linear(self, "first", drawn.prompt, H, self.initializer, spec)
    made = linear(self, "second", jax.nn.relu(hidden), H, self.initializer, spec)
    return Drawn(made, drawn.mask)

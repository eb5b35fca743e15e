"""A prompt passed through a network that all its rows share, with a skip around it.

  Z = prompt + LN(ReLU(prompt W1 + b1) W2 + b2)      trains 2 H r + r + H + 2 H

Razdaibiedina et al., 2023, "Residual Prompt Tuning: Improving Prompt Tuning with
Residual Reparameterization". With the norm's scale and bias at 0, Z is the prompt.
Z does not read the input where the prompt does not: a folded prompt stores Z alone.
"""

import flax.linen as nn
import jax

from prompt_tuning.blocks.linear import linear
from prompt_tuning.blocks.norms import layer_norm
from prompt_tuning.core.context import Code, Spec
from prompt_tuning.core.prompt import Drawn, Initializer


class ResidualMlp(nn.Module):
  """Adds what the network makes of each row.

  Attributes:
    width: r, of the hidden layer.
    initializer: draws both kernels; None for the framework's default.
  """

  width: int
  initializer: Initializer | None = None

  @nn.compact
  def __call__(
    self, drawn: Drawn, code: Code | None, spec: Spec, train: bool = False
  ) -> Drawn:
    if self.width < 1:
      raise ValueError(f"`ResidualMlp.width` must be at least 1, got {self.width}.")
    prompt_RGPH = drawn.prompt
    H = prompt_RGPH.shape[-1]
    hidden = linear(self, "down", prompt_RGPH, self.width, self.initializer, spec)
    up = linear(self, "up", jax.nn.relu(hidden), H, self.initializer, spec)
    added = layer_norm(self, up, spec)
    return Drawn(prompt_RGPH + added, drawn.mask)

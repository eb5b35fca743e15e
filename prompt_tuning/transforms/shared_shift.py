"""One vector of the input added to all rows of a prompt.

  Z_p = prompt_p + ReLU(x W1 + b1) W2 + b2          trains C r + r + r H + H

Zhou et al., 2022, "Conditional Prompt Learning for Vision-Language Models" (CoCoOp),
with a text's code x in place of an image's. W2 and b2 start at zero, our choice: a run
starts at the static prompt.
"""

from typing import ClassVar

import flax.linen as nn
import jax

from prompt_tuning.blocks.linear import linear
from prompt_tuning.core.context import Code, Spec, masked_mean
from prompt_tuning.core.prompt import Drawn, Initializer
from prompt_tuning.inits import uniform


class SharedShift(nn.Module):
  """A bottleneck over the code.

  Attributes:
    width: r. initializer: draws the first kernel; None for the framework's default.
  """

  reads_code: ClassVar[bool] = True
  width: int
  initializer: Initializer | None = None

  @nn.compact
  def __call__(
    self, drawn: Drawn, code: Code, spec: Spec, train: bool = False
  ) -> Drawn:
    if self.width < 1:
      raise ValueError(f"`SharedShift.width` must be at least 1, got {self.width}.")
    mean_RC = masked_mean(code.values, code.mask)
    hidden_RF = linear(self, "down", mean_RC, self.width, self.initializer, spec)
    H = drawn.prompt.shape[-1]
    shift_RH = linear(self, "up", jax.nn.relu(hidden_RF), H, uniform.zeros(), spec)
    return Drawn(drawn.prompt + shift_RH[:, None, None], drawn.mask)

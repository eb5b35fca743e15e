"""A free table: the prompt is its own parameters.

  prompt[G P H]                                      trains G * P * H

Lester et al., 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning".
"""

from typing import ClassVar

import flax.linen as nn

from prompt_tuning.core.context import Spec
from prompt_tuning.core.prompt import AXES, Drawn, Initializer, Shape, weight


class Dense(nn.Module):
  """One table shared by the whole batch.

  Attributes:
    initializer: draws the table [G P H].
  """

  reads_code: ClassVar[bool] = False
  initializer: Initializer

  @nn.compact
  def __call__(
    self, code: None, shape: Shape, spec: Spec, train: bool = False
  ) -> Drawn:
    prompt_GPH = weight(self, "prompt", self.initializer, shape, spec, AXES)
    return Drawn(prompt_GPH[None])

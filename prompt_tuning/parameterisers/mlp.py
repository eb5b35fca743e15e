"""Feed-forward generators: one vector of the input -> the whole prompt.

`Projection` is IPT's MLP encoder (arXiv 2206.01958), on the mean of Q vectors:
  Z = drop(ReLU(mean W + b))                         trains C * GPH + GPH

`Bottleneck` is IDPG's dense generator (Wu et al., 2022, "IDPG: An Instance-Dependent
Prompt Generation Method", section 3.2):
  Z = drop(GELU(drop(h) W1 + b1)) W2 + b2            trains C r + r + r GPH + GPH
"""

import math
from typing import ClassVar

import flax.linen as nn
import jax

from prompt_tuning.blocks.linear import linear
from prompt_tuning.core.context import Code, Spec, masked_mean
from prompt_tuning.core.prompt import AXES, Drawn, Initializer, Shape, weight
from prompt_tuning.inits import uniform


class Projection(nn.Module):
  """One layer with a rectifier behind it.

  Attributes:
    dropout_rate: on the prompt itself, in training only.
    initializer: draws the kernel [C GPH]; None for the framework's default.
  """

  reads_code: ClassVar[bool] = True
  dropout_rate: float = 0.5
  initializer: Initializer | None = None

  @nn.compact
  def __call__(
    self, code: Code, shape: Shape, spec: Spec, train: bool = False
  ) -> Drawn:
    mean_RC = masked_mean(code.values, code.mask)
    drawn_RX = linear(self, "out", mean_RC, math.prod(shape), self.initializer, spec)
    drawn_RX = jax.nn.relu(drawn_RX)
    drawn_RX = nn.Dropout(self.dropout_rate)(drawn_RX, deterministic=not train)
    return Drawn(drawn_RX.reshape(-1, *shape))


class Bottleneck(nn.Module):
  """Two layers, the first one narrow.

  Attributes:
    width: r, of the hidden layer. dropout_rate: on the code and the hidden layer.
    initializer: draws both kernels. bias_initializer: draws the output bias [G P H],
      which is the static prompt that the generated part is added to.
  """

  reads_code: ClassVar[bool] = True
  width: int
  dropout_rate: float = 0.1
  initializer: Initializer = uniform.normal(0.02)
  bias_initializer: Initializer = uniform.normal(0.02)

  @nn.compact
  def __call__(
    self, code: Code, shape: Shape, spec: Spec, train: bool = False
  ) -> Drawn:
    if self.width < 1:
      raise ValueError(f"`Bottleneck.width` must be at least 1, got {self.width}.")
    drop = nn.Dropout(self.dropout_rate, deterministic=not train)
    mean_RC = masked_mean(code.values, code.mask)
    hidden_RF = linear(self, "down", drop(mean_RC), self.width, self.initializer, spec)
    hidden_RF = drop(jax.nn.gelu(hidden_RF, approximate=False))
    up = self.width, math.prod(shape)
    up_FX = weight(self, "up_kernel", self.initializer, up, spec, ("mlp", "embed"))
    bias_GPH = weight(self, "up_bias", self.bias_initializer, shape, spec, AXES)
    return Drawn((hidden_RF @ up_FX).reshape(-1, *shape) + bias_GPH[None])

"""IPT's RNN encoder (arXiv 2206.01958): two BiLSTM layers and a linear one.

  Z = [last forward state; first backward state] W + b
  trains 2 * 4u(C + u + 2) + 2 * 4u(2u + u + 2) + (2u + 1) GPH, u = 64 units

Each example is a sequence of its own, read batch-first.
"""

import math
from typing import ClassVar

import flax.linen as nn

from prompt_tuning.blocks.linear import linear
from prompt_tuning.blocks.lstm import BiLstm
from prompt_tuning.core.context import Code, Spec
from prompt_tuning.core.prompt import Drawn, Initializer, Shape


class Lstm(nn.Module):
  """A recurrent reader of the code's vectors.

  Attributes:
    units: of each direction of each layer.
    initializer: draws the output kernel; None for the framework's default.
  """

  reads_code: ClassVar[bool] = True
  units: int = 64
  initializer: Initializer | None = None

  @nn.compact
  def __call__(
    self, code: Code, shape: Shape, spec: Spec, train: bool = False
  ) -> Drawn:
    outputs, _ = BiLstm(self.units, name="lower")(code.values, code.mask, spec)
    _, ends_RF = BiLstm(self.units, name="upper")(outputs, code.mask, spec)
    drawn_RX = linear(self, "out", ends_RF, math.prod(shape), self.initializer, spec)
    return Drawn(drawn_RX.reshape(-1, *shape))

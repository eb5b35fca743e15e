"""M-IDPG's generator with hypercomplex kernels, which all layers share.

  Z_g = drop(GELU(drop(mean) W1 + b1)) W2 + b2_g
  W1 and W2 sums of n Kronecker products; trains H r / n + r + r PH / n + 2 n^3 + G PH

Wu et al., 2022, "IDPG: An Instance-Dependent Prompt Generation Method", section 3.3.
The mean state is divided by its root mean square, as in `parameterisers.states`.
"""

from typing import ClassVar

import flax.linen as nn

from prompt_tuning.blocks import phm
from prompt_tuning.core.context import Spec
from prompt_tuning.core.layers import Reader
from prompt_tuning.core.prompt import AXES, Initializer, Shape, weight
from prompt_tuning.inits import uniform
from prompt_tuning.parameterisers.states import MakePooled, check_width


class PooledPhm(nn.Module):
  """The whole prompt of the mean state.

  Attributes:
    width: r. order: n, which divides H, r and P H.
    dropout_rate: on the mean and the hidden layer.
    bias_initializer: draws the output biases [G P H], the static prompt.
  """

  reads_code: ClassVar[bool] = False
  reads_states: ClassVar[bool] = True
  width: int
  order: int
  dropout_rate: float = 0.1
  initializer: Initializer = phm.draw
  bias_initializer: Initializer = uniform.normal(0.02)

  def __post_init__(self) -> None:
    check_width(self.width)
    super().__post_init__()

  @nn.compact
  def __call__(
    self, code: None, shape: Shape, spec: Spec, train: bool = False
  ) -> Reader:
    n, r, (_, P, H) = self.order, self.width, shape
    sizes = ("the width", H), ("GENERATOR_WIDTH", r), ("PROMPT_LENGTH * width", P * H)
    for name, value in sizes:
      phm.check(name, value, n)
    kernels = []
    for name, rows, columns, axes in (
      ("down", H, r, (None, "embed", "mlp")),
      ("up", r, P * H, (None, "mlp", "embed")),
    ):
      a_NIJ = weight(self, f"{name}_a", self.initializer, (n, n, n), spec)
      size = (n, rows // n, columns // n)
      b_NXY = weight(self, f"{name}_b", self.initializer, size, spec, axes)
      # Once a step, not once a layer.
      kernels.append(phm.kernel(a_NIJ, b_NXY))
    bias_F = weight(self, "down_bias", self.initializer, (r,), spec, ("mlp",))
    bias_GPH = weight(self, "up_bias", self.bias_initializer, shape, spec, AXES)
    shared = {"down_kernel": kernels[0], "down_bias": bias_F, "up_kernel": kernels[1]}
    return Reader(
      shared, {"up_bias": bias_GPH}, MakePooled("gelu", self.dropout_rate, 0.0)
    )

"""IDPG's generator with hypercomplex kernels: the bottleneck at 1/n of its size.

  Z = drop(GELU(drop(h) W1 + b1)) W2 + b2,  W1 and W2 sums of n Kronecker products
  trains C r / n + r + r GPH / n + GPH + a n^3 (a = 1 shared factors, 2 separate)

Wu et al., 2022, "IDPG: An Instance-Dependent Prompt Generation Method", section 3.2.
"""

import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from prompt_tuning.blocks import phm
from prompt_tuning.core.context import Code, Spec, masked_mean
from prompt_tuning.core.prompt import AXES, Drawn, Initializer, Shape, weight
from prompt_tuning.inits import uniform


class Phm(nn.Module):
  """Two hypercomplex layers.

  Attributes:
    width: r, of the hidden layer. order: n.
    shared: whether both layers use the same factors A.
    dropout_rate: on the code and the hidden layer.
    bias_initializer: draws the output bias [G P H], the static prompt.
  """

  reads_code: ClassVar[bool] = True
  width: int
  order: int
  shared: bool = False
  dropout_rate: float = 0.1
  initializer: Initializer = phm.draw
  bias_initializer: Initializer = uniform.normal(0.02)

  @nn.compact
  def __call__(
    self, code: Code, shape: Shape, spec: Spec, train: bool = False
  ) -> Drawn:
    n, r, out = self.order, self.width, math.prod(shape)
    mean_RC = jnp.asarray(masked_mean(code.values, code.mask), jnp.float32)
    C = mean_RC.shape[-1]
    for name, value in (
      ("the code's width", C),
      ("`Phm.width`", r),
      ("PROMPT_LENGTH * width", out),
    ):
      phm.check(name, value, n)
    drop = nn.Dropout(self.dropout_rate, deterministic=not train)
    down_a = weight(self, "down_a", self.initializer, (n, n, n), spec)
    down, up = (n, C // n, r // n), (n, r // n, out // n)
    axes, back = (None, "embed", "mlp"), (None, "mlp", "embed")
    down_b = weight(self, "down_b", self.initializer, down, spec, axes)
    down_bias = weight(self, "down_bias", self.initializer, (r,), spec, ("mlp",))
    up_a = down_a
    if not self.shared:
      up_a = weight(self, "up_a", self.initializer, (n, n, n), spec)
    up_b = weight(self, "up_b", self.initializer, up, spec, back)
    bias_GPH = weight(self, "up_bias", self.bias_initializer, shape, spec, AXES)
    hidden_RF = phm.multiply(drop(mean_RC), down_a, down_b) + down_bias[None]
    hidden_RF = drop(jax.nn.gelu(hidden_RF, approximate=False))
    drawn_RX = hidden_RF @ phm.kernel(up_a, up_b)
    return Drawn(drawn_RX.reshape(-1, *shape) + bias_GPH[None])

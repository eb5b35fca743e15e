"""IPT's CNN encoder (arXiv 2206.01958): three filters, three numbers, one layer.

  s_k = max over t of ReLU(filter_k over k vectors), k = 3, 4, 5;  Z = s W + b
  trains 12 C + 3 + 4 GPH

Windows start at real positions only; what lies beyond the text counts as zero.
"""

import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from prompt_tuning.blocks.linear import linear
from prompt_tuning.core.context import Code, Spec
from prompt_tuning.core.prompt import Drawn, Initializer, Shape, weight
from prompt_tuning.inits import uniform

HEIGHTS = (3, 4, 5)


class Cnn(nn.Module):
  """Convolutions over the code's vectors.

  Attributes:
    initializer: draws the output kernel; None for the framework's default.
  """

  reads_code: ClassVar[bool] = True
  initializer: Initializer | None = None

  @nn.compact
  def __call__(
    self, code: Code, shape: Shape, spec: Spec, train: bool = False
  ) -> Drawn:
    values_RQC = jnp.where(code.mask[..., None], code.values, 0)
    found = [self._filter(values_RQC, code.mask, height, spec) for height in HEIGHTS]
    strongest_RK = jnp.stack(found, axis=-1)
    drawn_RX = linear(
      self, "out", strongest_RK, math.prod(shape), self.initializer, spec
    )
    return Drawn(drawn_RX.reshape(-1, *shape))

  def _filter(
    self, values_RQC: jax.Array, mask_RQ: jax.Array, height: int, spec: Spec
  ) -> jax.Array:
    C = values_RQC.shape[-1]
    draw = uniform.symmetric((height * C) ** -0.5)
    kernel_KC = weight(self, f"filter_{height}_kernel", draw, (height, C), spec)
    bias = weight(self, f"filter_{height}_bias", draw, (), spec)
    # products[r, q, k] = vector q . row k; a window adds those along its diagonal.
    products_RQK = jnp.einsum("RQC,KC->RQK", values_RQC, kernel_KC)
    padded = jnp.pad(products_RQK, ((0, 0), (0, height - 1), (0, 0)))
    Q = values_RQC.shape[1]
    sums_RQ = sum(padded[:, k : k + Q, k] for k in range(height))
    # ReLU is at least 0, so 0 stands for "no window here" without changing a maximum.
    return jnp.max(jnp.where(mask_RQ, jax.nn.relu(sums_RQ + bias), 0), axis=1)

"""A generator without biases: Z = f(ReLU(h W1) W2).

Trains C r + r GPH. arXiv 2506.05629 (ID-SPAM), whose text rectifies the prompt too: f
is the identity here unless `final` says "relu", as a prompt without negative numbers
gains nothing. The published totals match an up-projection of width H, the text one of
P H.
"""

import math
from typing import ClassVar

import flax.linen as nn
import jax

from prompt_tuning.blocks.linear import kernel
from prompt_tuning.core.context import Code, Spec, masked_mean
from prompt_tuning.core.prompt import Drawn, Initializer, Shape


class ReluMlp(nn.Module):
  """Two kernels.

  Attributes:
    width: r. final: "identity" or "relu".
    initializer: draws both; None for U(+-1 / sqrt(fan in)).
  """

  reads_code: ClassVar[bool] = True
  width: int
  final: str = "identity"
  initializer: Initializer | None = None

  def __post_init__(self) -> None:
    if self.final not in ("identity", "relu"):
      raise ValueError(
        f"`ReluMlp.final` must be 'identity' or 'relu', got {self.final!r}."
      )
    if self.width < 1:
      raise ValueError(f"`ReluMlp.width` must be at least 1, got {self.width}.")
    super().__post_init__()

  @nn.compact
  def __call__(
    self, code: Code, shape: Shape, spec: Spec, train: bool = False
  ) -> Drawn:
    mean_RC = masked_mean(code.values, code.mask)
    sizes = (mean_RC.shape[-1], self.width), (self.width, math.prod(shape))
    axes = ("embed", "mlp"), ("mlp", "embed")
    down, up = (
      kernel(self, name, size, self.initializer, spec, a)
      for name, size, a in zip(("down", "up"), sizes, axes, strict=True)
    )
    made_RX = jax.nn.relu(mean_RC @ down) @ up
    made_RX = jax.nn.relu(made_RX) if self.final == "relu" else made_RX
    return Drawn(made_RX.reshape(-1, *shape))

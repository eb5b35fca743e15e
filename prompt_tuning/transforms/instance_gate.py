"""Each row of a prompt times how much the text asks for it.

  s_p = sigmoid(mean_t (V_p Wq + bq) . (x_t Wk + bk) / sqrt(d)),   Z_p = s_p V_p

trains 2 (H d + d). Jin et al., 2022, "Instance-aware Prompt Learning for Language
Understanding and Generation" (IPL, arXiv 2201.07126). The mean is over real tokens; the
released code's runs over pads too. With Wq and Wk at zero, Z is half of the prompt.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from prompt_tuning.blocks.linear import linear
from prompt_tuning.core.context import Code, Spec, masked_mean
from prompt_tuning.core.prompt import Drawn, Initializer


class InstanceGate(nn.Module):
  """A factor a row and example, between 0 and 1.

  Attributes:
    width: d, of queries and keys.
    initializer: draws both kernels; None for the framework's default.
  """

  reads_code: ClassVar[bool] = True
  width: int = 64
  initializer: Initializer | None = None

  @nn.compact
  def __call__(
    self, drawn: Drawn, code: Code, spec: Spec, train: bool = False
  ) -> Drawn:
    if self.width < 1:
      raise ValueError(f"`InstanceGate.width` must be at least 1, got {self.width}.")
    queries = linear(self, "query", drawn.prompt, self.width, self.initializer, spec)
    keys_RQF = linear(self, "key", code.values, self.width, self.initializer, spec)
    # The mean of products with keys is the product with their mean.
    mean_RF = masked_mean(keys_RQF, code.mask)
    R = mean_RF.shape[0]
    queries_RGPF = jnp.broadcast_to(queries, (R, *queries.shape[1:]))
    scores_RGP = jnp.einsum("RGPF,RF->RGP", queries_RGPF, mean_RF)
    gate_RGP = jax.nn.sigmoid(scores_RGP * self.width**-0.5)
    return Drawn(drawn.prompt * gate_RGP[..., None], drawn.mask)

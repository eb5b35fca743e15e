"""Frozen source prompts and a target prompt, mixed for each input.

  h = LN(SiLU(x W1) W2),  a = softmax_j(max_p(P_j) . h / tau) over j = 0..n
  Z = sum_j a_j P_j + P_0

P_0 is the target's, which trains; P_1..P_n are those of other tasks. Trains P H + 2 H r
+ 2 H. Asai et al., 2022, "ATTEMPT: Parameter-Efficient Multi-task Tuning via
Attentional Mixtures of Soft Prompts". The norm trains here, in the released code it
does not.
"""

import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from prompt_tuning.blocks.linear import kernel
from prompt_tuning.blocks.norms import layer_norm
from prompt_tuning.core.context import Code, Spec, masked_mean
from prompt_tuning.core.prompt import AXES, Drawn, Initializer, Shape, weight
from prompt_tuning.inits import uniform


class Mixture(nn.Module):
  """One table an example.

  Attributes:
    sources: n, from 0. width: r.
    temperature: tau; None for e H, which is the paper's 2,087 at H = 768.
    initializer: draws the target [G P H].
    sources_initializer: draws the sources [n G P H]; they are the leaf `sources`, which
      TRAINABLE leaves out.
    kernel_initializer: draws W1 and W2; None for the framework's default.
  """

  reads_code: ClassVar[bool] = True
  sources: int
  width: int
  temperature: float | None = None
  initializer: Initializer = uniform.normal(0.02)
  sources_initializer: Initializer = uniform.normal(0.02)
  kernel_initializer: Initializer | None = None

  def __post_init__(self) -> None:
    heat = self.temperature
    if self.sources < 0 or self.width < 1 or (heat is not None and not heat > 0):
      raise ValueError(
        "`Mixture.sources` must be at least 0, `width` at least 1 and `temperature` "
        f"above 0 or None, got {self.sources}, {self.width} and {heat}."
      )
    super().__post_init__()

  @nn.compact
  def __call__(
    self, code: Code, shape: Shape, spec: Spec, train: bool = False
  ) -> Drawn:
    x_RC = masked_mean(code.values, code.mask)
    target_GPH = weight(self, "target", self.initializer, shape, spec, AXES)
    several = (self.sources, *shape)
    axes = (None, *AXES)
    tables = weight(self, "sources", self.sources_initializer, several, spec, axes)
    tables = jnp.concatenate([target_GPH[None], jax.lax.stop_gradient(tables)])
    h_RH = self._query(x_RC, shape[-1], spec)
    scores_RKG = jnp.einsum("KGH,RH->RKG", tables.max(2), h_RH)
    heat = self.temperature or math.e * shape[-1]
    shares_RKG = jax.nn.softmax(scores_RKG / heat, axis=1)
    mixed = jnp.einsum("RKG,KGPH->RGPH", shares_RKG, tables)
    return Drawn(mixed + target_GPH[None])

  def _query(self, x_RC: jax.Array, H: int, spec: Spec) -> jax.Array:
    C = x_RC.shape[-1]
    down, up = (
      kernel(self, name, size, self.kernel_initializer, spec, axes)
      for name, size, axes in (
        ("down", (C, self.width), ("embed", "mlp")),
        ("up", (self.width, H), ("mlp", "embed")),
      )
    )
    return layer_norm(self, jax.nn.silu(x_RC @ down) @ up, spec)

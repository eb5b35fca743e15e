"""An affine layer that several words share."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from prompt_tuning.core.axes import along
from prompt_tuning.core.context import Spec
from prompt_tuning.core.prompt import Initializer, weight
from prompt_tuning.inits import uniform


def linear(
  module: nn.Module,
  name: str,
  x_XC: Float[Array, "*X C"],
  features: int,
  initializer: Initializer | None,
  spec: Spec,
) -> Float[Array, "*X F"]:
  """x W + b with parameters `name`_kernel and `name`_bias of the calling module."""
  if initializer is None:
    # The default of the frameworks that the papers used: U(+-1 / sqrt(fan in)).
    initializer = uniform.symmetric(x_XC.shape[-1] ** -0.5)
  shape, axes = (x_XC.shape[-1], features), ("embed", "mlp")
  kernel_CF = weight(module, f"{name}_kernel", initializer, shape, spec, axes)
  bias_F = weight(module, f"{name}_bias", uniform.zeros(), shape[1:], spec, axes[1:])
  product_XF = jnp.asarray(x_XC, jnp.float32) @ kernel_CF
  return product_XF + along(bias_F, product_XF)

"""Affine layers that several words share, and how their kernels start."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from prompt_tuning.core.axes import along
from prompt_tuning.core.context import Spec
from prompt_tuning.core.prompt import Initializer, weight
from prompt_tuning.inits import uniform


def kernel(
  module: nn.Module,
  name: str,
  shape: Sequence[int],
  initializer: Initializer | None,
  spec: Spec,
  axes: Sequence[str | None] | None = ("embed", "mlp"),
) -> Array:
  """A kernel [... C F] of the calling module; see `core.prompt.weight`."""
  if initializer is None:
    # The default of the frameworks that the papers used: U(+-1 / sqrt(fan in)).
    initializer = uniform.symmetric(shape[-2] ** -0.5)
  return weight(module, name, initializer, shape, spec, axes)


def linear(
  module: nn.Module,
  name: str,
  x_XC: Float[Array, "*X C"],
  features: int,
  initializer: Initializer | None,
  spec: Spec,
) -> Float[Array, "*X F"]:
  """x W + b with parameters `name`_kernel and `name`_bias of the calling module."""
  shape = x_XC.shape[-1], features
  kernel_CF = kernel(module, f"{name}_kernel", shape, initializer, spec)
  bias_F = weight(module, f"{name}_bias", uniform.zeros(), shape[1:], spec, ("mlp",))
  product_XF = jnp.asarray(x_XC, jnp.float32) @ kernel_CF
  return product_XF + along(bias_F, product_XF)

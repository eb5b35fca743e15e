"""Norms that several words share."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from prompt_tuning.core.axes import along
from prompt_tuning.core.context import Spec
from prompt_tuning.core.prompt import weight
from prompt_tuning.inits import uniform


def unit_rms(x: Float[Array, "*X C"]) -> Float[Array, "*X C"]:
  """Each vector over its root mean square: one scale, whatever the backbone's."""
  mean_square = jnp.mean(jnp.square(x), -1, keepdims=True)
  return x * jax.lax.rsqrt(mean_square + 1e-6)


def layer_norm(
  module: nn.Module, x: Float[Array, "*X H"], spec: Spec
) -> Float[Array, "*X H"]:
  """Mean 0 and variance 1, then `norm_scale` and `norm_bias` of the calling module."""
  centred = x - x.mean(-1, keepdims=True)
  variance = jnp.square(centred).mean(-1, keepdims=True)
  size, axes = x.shape[-1:], ("embed",)
  scale_H = weight(module, "norm_scale", uniform.ones(), size, spec, axes)
  bias_H = weight(module, "norm_bias", uniform.zeros(), size, spec, axes)
  normed = centred * jax.lax.rsqrt(variance + 1e-5)
  return normed * along(scale_H, normed) + along(bias_H, normed)

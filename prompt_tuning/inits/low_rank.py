"""How low-rank changes of kernels and tables start: as none, and with a gradient.

Hu et al., 2022, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1.
"""

from typing import Any

import jax
import jax.numpy as jnp

from prompt_tuning.core.prompt import Initializer


def lora() -> Initializer:
  """Left factors uniform as PEFT draws them, right ones zero; of adapters as well.

  A left factor [I] is U(-1 / sqrt(I), 1 / sqrt(I)): Kaiming's draw with a = sqrt(5).

  Raises:
    ValueError: at a place that is no kernel.
  """

  def draw(key: Any, shape: tuple[int, ...], spec: Any) -> jax.Array:
    inputs = spec.asked.inputs
    if not inputs:
      raise ValueError(
        "`low_rank.lora` starts a change of a kernel or an adapter: `Prompt.site` must "
        "be a place that ends in 'weight' or 'adapter'."
      )
    bound = inputs**-0.5
    left = jax.random.uniform(key, (*shape[:-1], inputs), minval=-bound, maxval=bound)
    right = jnp.zeros((*shape[:-1], shape[-1] - inputs))
    return jnp.concatenate([left, right], axis=-1)

  return draw


def left() -> Initializer:
  """The left factor [G P R] of a table: U(-1 / sqrt(R), 1 / sqrt(R)).

  That is Kaiming's draw with a = sqrt(5), as DePT's released code has it.
  """

  def draw(key: Any, shape: tuple[int, ...], spec: Any) -> jax.Array:
    del spec
    bound = shape[-1] ** -0.5
    return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

  return draw

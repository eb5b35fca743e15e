"""What moves while training: the trainable branch, its optimiser's slots, the step."""

from typing import Any

import flax.struct
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int


@flax.struct.dataclass
class TrainState:
  """Attributes:
  step: steps taken.
  trainable: the branches that train, float32.
  optimizer: optax state of those branches and of nothing else.
  """

  step: Int[Array, ""]
  trainable: Any
  optimizer: Any


def create(trainable: Any, transform: optax.GradientTransformation) -> TrainState:
  """The state before the first step."""
  return TrainState(jnp.zeros((), jnp.int32), trainable, transform.init(trainable))

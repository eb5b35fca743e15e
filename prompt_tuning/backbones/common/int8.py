"""Frozen matrices as int8: a quarter of float32's bytes, half of bfloat16's.

  kernel[I O] ~ values[I O] * scale[1 O]     scale[1 O] = max over I of |kernel| / 127
  table[V H]  ~ values[V H] * scale[V 1]     values are whole numbers from -127 to 127

Storage alone: products are of floats, one layer's matrix at a time, and the scale of an
output channel is multiplied behind the product. Norms and position biases stay as they
are. Nothing here trains: gradients flow to the activations and no further.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8

from prompt_tuning.core.axes import along
from prompt_tuning.core.trainable import flatten, unflatten

LARGEST = 127


@flax.struct.dataclass
class Quantised:
  """A matrix, or a stack of them, that stands for values * scale.

  Attributes:
    values: [... I O], or a table [V H].
    scale: [... 1 O], or of a table [V 1]; float32.
  """

  values: Int8[Array, "*X"]
  scale: Float[Array, "*Y"]

  @property
  def shape(self) -> tuple[int, ...]:
    return self.values.shape

  @property
  def dtype(self) -> Any:
    return self.values.dtype

  @property
  def size(self) -> int:
    return self.values.size

  def wide(self, dtype: Any = jnp.float32) -> Array:
    """The matrix that it stands for."""
    return (self.values * self.scale).astype(dtype)


def is_matrix(name: str) -> bool:
  """Whether an array of a T5, by its T5X name, is held as int8."""
  return name.rpartition("/")[2] in ("kernel", "embedding")


def quantise(name: str, matrix: np.ndarray) -> Quantised:
  """One matrix, or a stack, on the host; halves go to the even neighbour."""
  axis = -1 if name.endswith("embedding") else -2
  matrix = np.asarray(matrix, np.float32)
  scale = np.abs(matrix).max(axis, keepdims=True) / np.float32(LARGEST)
  # A channel of zeros stays one, whatever its scale.
  scale[scale == 0] = 1
  return Quantised(np.rint(matrix / scale).astype(np.int8), scale)


def read(
  name: str, shape: tuple[int, ...], layer: Callable[[int | None], np.ndarray]
) -> Quantised:
  """Quantises layer by layer, so that one layer at most is held as floats.

  Args:
    name: of the array. shape: its own, with a layer axis in front where layers are
      stacked.
    layer: reads that layer [1 I O], or the whole for None.
  """
  if len(shape) == 2:
    return quantise(name, layer(None))
  found = [quantise(name, layer(number)) for number in range(shape[0])]
  values = np.concatenate([one.values for one in found])
  return Quantised(values, np.concatenate([one.scale for one in found]))


def tree(params: Any) -> Any:
  """Weights of a T5 with its matrices quantised."""
  flat = {
    name: jax.device_put(quantise(name, jax.device_get(leaf)))
    if is_matrix(name)
    else leaf
    for name, leaf in flatten(params).items()
  }
  return unflatten(flat)


def shapes(params: Any) -> Any:
  """Of what `tree` makes, from shapes alone."""

  def narrow(name: str, leaf: Any) -> Any:
    if not is_matrix(name):
      return leaf
    axis = len(leaf.shape) - (1 if name.endswith("embedding") else 2)
    one = (*leaf.shape[:axis], 1, *leaf.shape[axis + 1 :])
    values = jax.ShapeDtypeStruct(leaf.shape, jnp.int8)
    return Quantised(values, jax.ShapeDtypeStruct(one, jnp.float32))

  flat = flatten(params)
  return unflatten({name: narrow(name, leaf) for name, leaf in flat.items()})


def refuse(params: Any, what: str) -> None:
  """Raises ValueError for weights that are no longer those of a checkpoint."""
  found = [n for n, leaf in flatten(params).items() if isinstance(leaf, Quantised)]
  if found:
    raise ValueError(
      f"{what} would write weights that were rounded to int8 ({len(found)} matrices). "
      "Load the backbone without WEIGHTS_DTYPE = 'int8', and write that."
    )


@jax.custom_vjp
def product(x: Float[Array, "*X I"], kernel: Quantised) -> Float[Array, "*X O"]:
  """x @ kernel in the type of x."""
  rough = x @ kernel.values.astype(x.dtype)
  return rough * along(kernel.scale[0].astype(x.dtype), rough)


def _forward(x: Array, kernel: Quantised) -> tuple[Array, Quantised]:
  return product(x, kernel), kernel


def _backward(kernel: Quantised, grad: Array) -> tuple[Array, None]:
  # Without the barrier the float copy of the pass forward would be kept for this one:
  # in unrolled layers, those of all of them.
  values, grad = jax.lax.optimization_barrier((kernel.values, grad))
  scaled = grad * along(kernel.scale[0].astype(grad.dtype), grad)
  return scaled @ values.astype(grad.dtype).T, None


product.defvjp(_forward, _backward)


def rows(table: Quantised, ids: Array, dtype: Any) -> Float[Array, "*X H"]:
  """Rows of a table."""
  values, scale = (jnp.take(x, ids, axis=0) for x in (table.values, table.scale))
  return (values * scale).astype(dtype)


def transposed(table: Quantised) -> Quantised:
  """A table as the kernel of the logits."""
  return Quantised(table.values.T, table.scale.T)

"""NaN and infinities in weights are refused when these are read.

Beside the reading it takes nothing: some 0.1 seconds for a gigabyte in memory.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from prompt_tuning.interop.lazy import Index, Lazy, UnreadableError

# Numbers looked at at once.
_BLOCK = 1 << 18


def is_finite(array: np.ndarray) -> bool:
  """Whether every number is; block by block, so that little memory is taken."""
  if not array.flags.c_contiguous:
    array = np.ascontiguousarray(array)
  numbers = array.reshape(-1)
  if array.dtype == jnp.bfloat16:
    # numpy takes types that are not its own one by one; these bits are all ones there.
    bits, most = numbers.view(np.uint16), np.uint16(0x7F80)
    blocks = (bits[i : i + _BLOCK] & most for i in range(0, bits.size, _BLOCK))
    return not any((block == most).any() for block in blocks)
  steps = range(0, numbers.size, _BLOCK)
  return all(np.isfinite(numbers[i : i + _BLOCK]).all() for i in steps)


def only_finite(lazy: Lazy, name: str, where: Any) -> Lazy:
  """The array, refused with `UnreadableError` where what is read of it is not finite.

  Args:
    lazy: the array. name: its own. where: its file or folder.
  """

  def into(target: np.ndarray, index: Index) -> None:
    lazy.into(target, index)
    if not is_finite(target):
      raise UnreadableError(
        f"{str(where)!r} is damaged, or its training diverged: {name} holds NaN or "
        "infinite numbers."
      )

  return Lazy(lazy.shape, lazy.dtype, into)

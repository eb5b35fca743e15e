"""What heads may read of a T5: one vector an example, packed rows by segment.

mean    of the encoder's last states at the text's own tokens
first   the decoder's last state at its start token, which is all that it is fed (its
        prompt, where it has one, stands in front)
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

VIEWS = ("mean", "first")


def start(batch: dict[str, Array], front: int, segments: int) -> dict[str, Array]:
  """Features of a decoder that is fed its prompt and start tokens alone.

  Args:
    batch: of the encoder. front: positions of the decoder's prompt. segments: S.
  """
  B = batch["inputs"].shape[0]

  def rows(one: Any) -> Array:
    row_U = jnp.tile(jnp.asarray(one, jnp.int32), segments)
    return jnp.broadcast_to(row_U, (B, row_U.size))

  found = {
    **batch,
    "decoder_inputs": rows([0] * (front + 1)),
    "decoder_prompt_index": rows([*range(front), -1]),
  }
  if segments > 1:
    numbers_U = jnp.repeat(jnp.arange(1, segments + 1, dtype=jnp.int32), front + 1)
    found["decoder_segment_ids"] = jnp.broadcast_to(numbers_U, (B, numbers_U.size))
  return found

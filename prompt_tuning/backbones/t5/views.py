"""What heads may read of a T5: one vector an example, packed rows by segment.

mean    of the encoder's last states at the text's own tokens
first   the decoder's last state at its start token, which is all that it is fed (its
        prompt, where it has one, stands in front)
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from prompt_tuning.core.context import masked_mean, mean_of_each, of_each
from prompt_tuning.core.ids import MARKS, Ids

VIEWS = ("mean", "first")


def mean(
  encoded_BTH: Float[Array, "B T H"],
  batch: dict[str, Array],
  segments: int,
  ids: Ids = MARKS,
) -> Float[Array, "R H"]:
  """float32 means; 0 where a packed row has no such example."""
  text_BT = ids.is_real(batch["inputs"])
  if "prompt_index" in batch:
    text_BT &= batch["prompt_index"] < 0
  wide_BTH = encoded_BTH.astype(jnp.float32)
  if segments == 1:
    return masked_mean(wide_BTH, text_BT)
  own_BST = of_each(batch["segment_ids"], segments) & text_BT[:, None]
  mean_BSH = mean_of_each(wide_BTH, own_BST)
  return mean_BSH.reshape(-1, mean_BSH.shape[-1])


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

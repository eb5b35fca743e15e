"""Where the words of a text stand in rows, and the mean of their states."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from prompt_tuning.core.context import masked_mean, mean_of_each, of_each
from prompt_tuning.core.ids import Ids


def places(batch: dict[str, Array], ids: Ids) -> Int[Array, "B T"]:
  """Place of each token in its own text, reserved positions left out; -1 elsewhere."""
  inputs_BT = batch["inputs"]
  text_BT = ids.is_real(inputs_BT)
  if "prompt_index" in batch:
    text_BT &= batch["prompt_index"] < 0
  before_BT = jnp.cumsum(text_BT, axis=1) - 1
  segments_BT = batch.get("segment_ids")
  if segments_BT is not None:
    # Counted anew from the first token of each example.
    earlier_BT = jnp.pad(segments_BT, ((0, 0), (1, 0)))[:, :-1]
    first_BT = jnp.where(segments_BT != earlier_BT, jnp.cumsum(text_BT, axis=1), 0)
    starts_BT = first_BT - jnp.where(segments_BT != earlier_BT, text_BT, False)
    before_BT = before_BT - jax.lax.cummax(starts_BT, axis=1)
  return jnp.where(text_BT, before_BT, -1)


def mean(
  encoded_BTH: Float[Array, "B T H"],
  batch: dict[str, Array],
  segments: int,
  ids: Ids,
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

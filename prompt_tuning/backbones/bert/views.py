"""What heads may read of a BERT: one vector an example, packed rows by segment.

mean    of the last states at the text's own tokens, the marks around it included
first   the last state at the text's first token, wherever a prompt stands
pooler  tanh(W first + b), where the files have one
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from prompt_tuning.core.context import of_each
from prompt_tuning.core.ids import Ids

VIEWS = ("mean", "first")
POOLER = "pooler"


def first(
  states_BTH: Float[Array, "B T H"], batch: dict[str, Array], segments: int, ids: Ids
) -> Float[Array, "R H"]:
  """The state at each example's first token; of no example, some state."""
  text_BT = ids.is_real(batch["inputs"])
  if "prompt_index" in batch:
    text_BT &= batch["prompt_index"] < 0
  own_BST = text_BT[:, None]
  if segments > 1:
    own_BST &= of_each(batch["segment_ids"], segments)
  at_BS1 = own_BST.argmax(-1)[..., None]
  found_BSH = jnp.take_along_axis(states_BTH, at_BS1, axis=1)
  return found_BSH.reshape(-1, found_BSH.shape[-1])

"""What heads may read of a decoder: one vector an example, packed rows by segment.

mean    of the last states at the text's own tokens
first   the last state at the text's last token, of which the first target is made
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from prompt_tuning.backbones.common import texts
from prompt_tuning.core.context import of_each
from prompt_tuning.core.ids import Ids

VIEWS = ("mean", "first")


def of(
  name: str, states_BTH: Float[Array, "B T H"], batch: Any, segments: int, ids: Ids
) -> Float[Array, "R H"]:
  """The view of that name of the inputs' states.

  Args:
    name: one of `VIEWS`. states_BTH: of the inputs. batch: features of them.
    segments: S. ids: of the family.
  """
  if name == "mean":
    return texts.mean(states_BTH, batch, segments, ids)
  place_BST = texts.places(batch, ids)[:, None]
  if segments > 1:
    own_BST = of_each(batch["segment_ids"], segments)
    place_BST = jnp.where(own_BST, place_BST, -1)
  last_BS1 = place_BST.argmax(axis=-1)[..., None]
  found_BSH = jnp.take_along_axis(states_BTH, last_BS1, axis=1)
  return found_BSH.reshape(-1, found_BSH.shape[-1])

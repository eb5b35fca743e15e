"""What all records of places share: the base, and tables side by side."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


class Place:
  """What all records share."""

  # Whether it stands at virtual positions, which the data must reserve.
  positions: ClassVar[bool] = False

  def pick(self, rows_B: Int[Array, " B"]) -> "Place":
    """The records of the examples of these numbers."""
    return jax.tree.map(lambda x: jnp.take(x, rows_B, axis=0), self)


def masked(tables_RGPJ: Array, mask_RP: Array | None) -> Array:
  """Tables with zeros where the mask is false."""
  if mask_RP is None:
    return tables_RGPJ
  return tables_RGPJ * mask_RP[:, None, :, None]


def joined(one: Array, other: Array, axis: int) -> Array:
  """Side by side; what reads no input stands in every example."""
  tables = one, other
  # Not max(): an exported program cannot compare its B with 1.
  R = next((table.shape[0] for table in tables if table.shape[0] != 1), 1)
  rows = [jnp.broadcast_to(table, (R, *table.shape[1:])) for table in tables]
  return jnp.concatenate(rows, axis=axis)


def joined_masks(vectors: Array, mask: Array | None, other: Any) -> Array | None:
  """Masks of two records side by side; None stays None where both are."""
  if mask is None and other.mask is None:
    return None
  masks = [
    jnp.ones((x.shape[0], x.shape[-2]), bool) if own is None else own
    for x, own in ((vectors, mask), (other.vectors, other.mask))
  ]
  return joined(*masks, 1)

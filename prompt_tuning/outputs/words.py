"""How ids become text; who serves reads it without the rest of the library."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

EOS = 1


def answers(
  ids: Any, decode: Callable[[Sequence[int]], str], eos: int = EOS
) -> list[str]:
  """One string a row: what stands before the end mark, without padding.

  Args:
    ids: integers [B U], or [B K U] best first, of which the first is taken.
    decode: piece ids -> text.
    eos: the end mark.
  """
  ids = np.asarray(ids)
  if ids.ndim not in (2, 3) or not np.issubdtype(ids.dtype, np.integer):
    raise ValueError(
      f"`ids` must be integers [B U] or [B K U], got {ids.dtype} {ids.shape}. "
      "Pass what `generate` returned first, not its log-probabilities."
    )
  best_BU = ids[:, 0] if ids.ndim == 3 else ids
  return [decode(words(row_U, eos)) for row_U in best_BU]


def words(row_U: Any, eos: int = EOS) -> list[int]:
  """The ids of one row before its end mark, pads left out."""
  row = [int(i) for i in row_U]
  row = row[: row.index(eos)] if eos in row else row
  return [i for i in row if i > 0]

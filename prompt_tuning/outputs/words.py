"""How ids and scores become text; who serves reads it without the rest."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from prompt_tuning.core.ids import MARKS, Ids
from prompt_tuning.core.labels import joined


def answers(
  ids: Any, decode: Callable[[Sequence[int]], str], marks: Ids = MARKS
) -> list[str]:
  """One string a row: what stands before the end mark, without padding.

  Args:
    ids: integers [B U], or [B K U] best first, of which the first is taken.
    decode: piece ids -> text.
    marks: what ends and pads, of the backbone (`Spec.ids`).
  """
  ids = np.asarray(ids)
  if ids.ndim not in (2, 3) or not np.issubdtype(ids.dtype, np.integer):
    raise ValueError(
      f"`ids` must be integers [B U] or [B K U], got {ids.dtype} {ids.shape}. "
      "Pass what `generate` returned first, not its log-probabilities."
    )
  best_BU = ids[:, 0] if ids.ndim == 3 else ids
  return [decode(words(row_U, marks)) for row_U in best_BU]


def words(row_U: Any, marks: Ids = MARKS) -> list[int]:
  """The ids of one row before its end mark, pads left out."""
  row = [int(i) for i in row_U]
  row = row[: row.index(marks.end)] if marks.end in row else row
  return [i for i in row if marks.is_real(i)]


def said(
  scores: Any,
  labels: Sequence[str] | None,
  kind: str,
  threshold: float = 0.5,
  separator: str = "|",
) -> list[str]:
  """What a head says, one text a row.

  Args:
    scores: [B K] of labels, or [B]. labels: K of them, in order; None for numbers.
    kind: "label", the likeliest (the earlier of two that tie); "labels", all whose
      score reaches the threshold, in order, or "none"; "number", with six digits.
    threshold, separator: see `outputs.classes.Labels`.
  """
  rows = np.asarray(scores)
  if kind == "number":
    return [f"{value:.6g}" for value in rows]
  if kind == "label":
    return [labels[row.argmax()] for row in rows]
  held = [[labels[k] for k in np.flatnonzero(row >= threshold)] for row in rows]
  return [joined(one, labels, separator) for one in held]

"""Answers from a list: the label that the model finds likeliest."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from prompt_tuning.core.ids import MARKS, Ids
from prompt_tuning.decoding import score


@dataclasses.dataclass(frozen=True)
class Choice:
  """How labels are scored against each other.

  Attributes:
    normalize_by_length: divide a label's log-probability by its tokens (end mark
      included), so that long labels are not at a loss, as T-Few does (Liu et al., 2022,
      "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context
      Learning").
    chunk: labels scored at once; 0 for all. Lower it where K labels do not fit.
  """

  kind: ClassVar[str] = "choice"
  serves: ClassVar[str] = "choose"
  labelled: ClassVar[bool] = True
  headed: ClassVar[bool] = False
  normalize_by_length: bool = False
  chunk: int = 0

  def __post_init__(self) -> None:
    if self.chunk < 0:
      raise ValueError(
        f"`Choice.chunk` must be at least 0, got {self.chunk}. 0 scores all labels at "
        "once."
      )

  def check(self, model: Any, labels: Sequence[str] | None) -> None:
    """Raises ValueError where there are no labels."""
    if not labels:
      raise ValueError(
        "`OUTPUT` is a choice among labels, but the task has no `labels` (LABELS). "
        "Give them, or include gin/outputs/text_greedy.gin."
      )

  def program(
    self, model: Any, labels: Sequence[str], encode: Callable[[str], Sequence[int]]
  ) -> Any:
    """(params, batch, numbers) -> `scores`, the labels' log-probabilities [B K]."""
    ids_KU = label_rows(labels, encode, model.backbone.spec.ids)

    def choose(params: Any, batch: Any, numbers: Any) -> Any:
      rule = self.normalize_by_length, self.chunk
      return {"scores": score.choice_scores(model, params, batch, ids_KU, *rule)}

    return choose

  def records(
    self, arrays: Any, labels: Sequence[str], decode: Any = None, marks: Ids = MARKS
  ) -> list[dict[str, Any]]:
    """The best label of each row, and the log-probability of every one."""
    scores_BK = np.asarray(arrays["scores"])
    return [
      {"prediction": answer, "scores": dict(zip(labels, map(float, row), strict=True))}
      for answer, row in zip(answers(scores_BK, labels), scores_BK, strict=True)
    ]

  def ids(
    self,
    arrays: Any,
    labels: Sequence[str],
    encode: Callable[[str], Sequence[int]],
    marks: Ids = MARKS,
  ) -> tuple[Any, Any]:
    """Ids [B U] of the best label of each row, and its score [B]."""
    scores_BK = arrays["scores"]
    ids_KU = jnp.asarray(label_rows(labels, encode, marks))
    return ids_KU[scores_BK.argmax(1)], scores_BK.max(1)


def label_rows(
  labels: Sequence[str], encode: Callable[[str], Sequence[int]], marks: Ids = MARKS
) -> Int[np.ndarray, "K U"]:
  """Ids of the labels, each closed by the end mark, padded.

  Args:
    labels: K different texts. encode: text -> piece ids without an end mark.
    marks: what ends and pads, of the backbone (`Spec.ids`).
  """
  rows = [tuple(int(i) for i in encode(label)) for label in labels]
  empty = [label for label, row in zip(labels, rows, strict=True) if not row]
  if empty or not rows:
    raise ValueError(
      f"`labels` must be texts with at least one piece each, got {empty[:3]!r}. Take "
      "out the empty ones."
    )
  first: dict[tuple[int, ...], str] = {}
  for label, row in zip(labels, rows, strict=True):
    if row in first:
      raise ValueError(
        f"`labels` holds {first[row]!r} twice, once made into pieces: {label!r} is the "
        "same. Name each label once: between equal ones there is nothing to choose."
      )
    first[row] = label
  width = max(map(len, rows)) + 1
  pads = [[marks.pad] * (width - 1 - len(row)) for row in rows]
  padded = [[*row, marks.end, *rest] for row, rest in zip(rows, pads, strict=True)]
  return np.array(padded, np.int32)


def answers(scores_BK: Any, labels: Sequence[str]) -> list[str]:
  """The label of highest score, one a row; the earlier of two that tie."""
  scores_BK = np.asarray(scores_BK)
  if scores_BK.ndim != 2 or scores_BK.shape[1] != len(labels):
    raise ValueError(
      f"`scores_BK` must have one column for each of the {len(labels)} labels, got "
      f"shape {scores_BK.shape}. Pass the labels that were scored, in their order."
    )
  return [labels[k] for k in scores_BK.argmax(1)]

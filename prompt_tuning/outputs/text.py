"""Answers in words: how to decode, and how ids become text.

The settings say which loop of `decoding/decode.py` runs and with what; `answers` turns
what it returns into one string a row.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from prompt_tuning.core.ids import MARKS, Ids

LENGTH_PENALTIES = ("brevity", "power")


@dataclasses.dataclass(frozen=True)
class Greedy:
  """The likeliest token at every step.

  Attributes:
    steps: U, tokens to write at most, end mark included.
  """

  loop: ClassVar[str] = "greedy"
  steps: int

  def __post_init__(self) -> None:
    _check(self, "steps", self.steps >= 1, "at least 1")


@dataclasses.dataclass(frozen=True)
class Sample:
  """A token drawn at every step. Each filter narrows what the one before it left.

  Attributes:
    steps: U, tokens to write at most, end mark included.
    temperature: divides the logits; below 1 sharpens.
    top_k: draw among the k likeliest tokens; 0 for all.
    top_p: draw among the fewest tokens whose probability reaches p; 1 for all.
      Holtzman et al., 2020, "The Curious Case of Neural Text Degeneration".
    seed: of the noise where `generate` is given no key.
  """

  loop: ClassVar[str] = "sample"
  steps: int
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  seed: int = 0

  def __post_init__(self) -> None:
    _check(self, "steps", self.steps >= 1, "at least 1")
    warm = 0 < self.temperature < float("inf")
    _check(self, "temperature", warm, "above 0 (bind `text.Greedy` for its limit at 0)")
    _check(self, "top_k", self.top_k >= 0, "at least 0, and 0 keeps every token")
    _check(self, "top_p", 0 < self.top_p <= 1, "in (0, 1], and 1 keeps every token")
    _check(self, "seed", self.seed >= 0, "at least 0")


@dataclasses.dataclass(frozen=True)
class Beam:
  """The best of several sequences grown side by side.

  Attributes:
    steps: U, tokens to write at most, end mark included.
    beams: K, sequences kept a row, and returned.
    alpha: strength of the length penalty; 0 ranks by plain log-probability.
    length_penalty: "brevity" searches as T5X does, "power" as Hugging Face does;
      `decoding.beam.beam_search` says where they differ.
  """

  loop: ClassVar[str] = "beam_search"
  steps: int
  beams: int = 4
  alpha: float = 0.6
  length_penalty: str = "brevity"

  def __post_init__(self) -> None:
    _check(self, "steps", self.steps >= 1, "at least 1")
    _check(self, "beams", self.beams >= 1, "at least 1")
    _check(self, "alpha", 0 <= self.alpha < float("inf"), "at least 0")
    known = self.length_penalty in LENGTH_PENALTIES
    _check(self, "length_penalty", known, f"one of {LENGTH_PENALTIES}")


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


def _check(settings: Any, name: str, fits: bool, allowed: str) -> None:
  if not fits:
    raise ValueError(
      f"`{type(settings).__name__}.{name}` must be {allowed}, got "
      f"{getattr(settings, name)!r}."
    )

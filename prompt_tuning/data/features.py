"""Task features -> model features, with virtual positions reserved for prompts.

An example's `inputs` get P reserved positions, and `prompt_index` says which: 0..P-1
there, -1 elsewhere. They stand in front, after the first token, before the end mark, or
at the `<prompt>` mark of a template. The same happens to the decoder's inputs where a
prompt feeds the decoder.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prompt_tuning.core.model import RESERVED_ID
from prompt_tuning.data.task import MARK

# Lengths that follow from examples are multiples of this.
ROUND = 16
# What each example has one of, whatever its length.
BY_EXAMPLE = ("task", "external", "code", "labels")
PLACES = ("front", "after_first", "end", "mark")


@dataclasses.dataclass(frozen=True)
class Layout:
  """How examples are laid out.

  Attributes:
    inputs: T, positions for inputs, the reserved ones not counted.
    targets: U, positions for targets.
    encoder_prompt, decoder_prompt: reserved positions on each side.
    place: one of `PLACES`, for the encoder side.
    truncate: cut what is too long (True), or refuse it (False).
  """

  inputs: int
  targets: int
  encoder_prompt: int = 0
  decoder_prompt: int = 0
  place: str = "front"
  truncate: bool = False

  def __post_init__(self) -> None:
    if self.place not in PLACES:
      raise ValueError(f"`PROMPT_PLACE` must be one of {PLACES}, got {self.place!r}.")
    for name in ("inputs", "targets"):
      if getattr(self, name) < 1:
        raise ValueError(
          f"`TASK_FEATURE_LENGTHS[{name!r}]` must be at least 1, got "
          f"{getattr(self, name)}."
        )

  def around(
    self, examples: Sequence[Mapping[str, Any]], doubling: bool = False
  ) -> "Layout":
    """This layout without the positions that none of the examples reaches.

    Lengths are rounded up to a multiple of `ROUND`, or to its double, fourfold and so
    on, so that few shapes are compiled.
    """

    def needed(name: str) -> int:
      longest = max((len(example[name]) for example in examples), default=1)
      size = -(-longest // ROUND) * ROUND
      if doubling:
        size = ROUND
        while size < longest:
          size *= 2
      return min(getattr(self, name), size)

    return dataclasses.replace(self, inputs=needed("inputs"), targets=needed("targets"))

  @property
  def lengths(self) -> dict[str, int]:
    """Length of each model feature of an unpacked row."""
    return {
      "inputs": self.inputs + self.encoder_prompt,
      "prompt_index": self.inputs + self.encoder_prompt,
      "targets": self.targets + self.decoder_prompt,
      "decoder_inputs": self.targets + self.decoder_prompt,
      "decoder_prompt_index": self.targets + self.decoder_prompt,
    }

  def convert(self, example: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Model features of one example (numpy ids, end marks included), unpadded.

    Raises:
      ValueError: if it is too long and `truncate` is off, or lacks its mark.
    """
    inputs = self._fitted("inputs", example)
    targets = self._fitted("targets", example)
    at = self._position(inputs, example)
    inputs, prompt_index = _reserve(inputs, self.encoder_prompt, at)
    shifted = np.concatenate([[0], targets[:-1]]).astype(np.int32)
    shifted, decoder_index = _reserve(shifted, self.decoder_prompt, 0)
    front = np.zeros(self.decoder_prompt, np.int32)
    features = {
      "inputs": inputs,
      "prompt_index": prompt_index,
      "targets": np.concatenate([front, targets]),
      "decoder_inputs": shifted,
      "decoder_prompt_index": decoder_index,
    }
    for name in BY_EXAMPLE:
      if name in example:
        features[name] = np.asarray(example[name])
    return features

  def _fitted(self, name: str, example: Mapping[str, Any]) -> np.ndarray:
    ids, limit = np.asarray(example[name], np.int32), getattr(self, name)
    if len(ids) > limit and not self.truncate:
      raise ValueError(
        f"An example has {len(ids)} {name}, more than the {limit} of "
        f"TASK_FEATURE_LENGTHS. Raise TASK_FEATURE_LENGTHS[{name!r}], or set TRUNCATE "
        "= True."
      )
    return _cut(ids, limit)

  def _position(self, inputs: np.ndarray, example: Mapping[str, Any]) -> int:
    if self.place == "after_first":
      return min(1, len(inputs))
    if self.place == "end":
      return max(len(inputs) - 1, 0)
    if self.place == "mark":
      mark = int(example.get("mark", -1))
      if mark < 0:
        raise ValueError(
          f"`PROMPT_PLACE` is 'mark', but the input has no {MARK}: write it once "
          "in the template of the task's inputs."
        )
      return min(mark, max(len(inputs) - 1, 0))
    return 0


def _cut(ids: np.ndarray, length: int) -> np.ndarray:
  """At most `length` ids; the last one, an end mark, is kept."""
  if len(ids) <= length:
    return ids
  return np.concatenate([ids[: length - 1], ids[-1:]])


def _reserve(ids: np.ndarray, length: int, at: int) -> tuple[np.ndarray, np.ndarray]:
  reserved = np.full(length, RESERVED_ID, np.int32)
  index = np.full(len(ids), -1, np.int32)
  places = np.arange(length, dtype=np.int32)
  return (
    np.concatenate([ids[:at], reserved, ids[at:]]),
    np.concatenate([index[:at], places, index[at:]]),
  )


PAD = {"prompt_index": -1, "decoder_prompt_index": -1}


def pad(
  features: Mapping[str, np.ndarray], lengths: Mapping[str, int]
) -> dict[str, np.ndarray]:
  """Fills each sequence up to its length; other features pass."""
  padded = {}
  for name, value in features.items():
    if name in lengths:
      row = np.full(lengths[name], PAD.get(name, 0), np.int32)
      row[: len(value)] = value
      value = row
    padded[name] = value
  return padded

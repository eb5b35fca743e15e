"""Task features -> model features: where virtual positions stand, what follows what.

Every row that a model reads is laid out here, whoever asks: training and evaluation
with numpy, one example at a time; the API, label scores and serving programs with
jax.numpy; T5X's pipelines with TensorFlow's numpy. `xp` is that module. Rows are padded
behind, or as long as their ids.

A backbone names its format (`core.backbone`). What differs between families is which
side reserves the positions of a prompt, and which token the first target follows; and
whether anything is written at all.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from prompt_tuning.core.ids import Ids

# Where reserved positions may stand in an input.
PLACES = ("front", "after_first", "end", "mark")


class Feature(NamedTuple):
  """What an array of a batch holds.

  Attributes:
    axis: what its entries are, beside those of rows: positions of "inputs" or of
      "targets"; or "example", one for each example of a row.
    dtype: of the array. pad: stands where a row holds nothing.
  """

  axis: str
  dtype: str = "int32"
  pad: int = 0


# In a packed row: 1..S, which example a position belongs to.
SEGMENTS = {
  "segment_ids": Feature("inputs"),
  "decoder_segment_ids": Feature("targets"),
}
# What each example has one of, whatever its length.
BY_EXAMPLE = {
  "task": Feature("example"),
  "external": Feature("example", "float32"),
  "code": Feature("example", "float32"),
  # int32 numbers of classes, or float32, see `data.targets`.
  "labels": Feature("example", "float32"),
}


@dataclasses.dataclass(frozen=True)
class EncoderDecoder:
  """Inputs for an encoder, and shifted targets for a decoder.

  Virtual positions of the side "encoder" stand in the inputs; those of the "decoder" in
  front of its inputs, where nothing is to be said.

  Attributes:
    ids: of the family.
    closed: whether an end mark closes what is read.
    joined: whether inputs and targets are one row, so that a row alone has logits.
    opened: marks in front of what is read, which `read` puts there.
    writes: whether there are targets.
    place: where reserved positions stand if nobody says so.
    most: positions that a row of one example may have; None for any.
  """

  closed: ClassVar[bool] = True
  joined: ClassVar[bool] = False
  opened: ClassVar[int] = 0
  writes: ClassVar[bool] = True
  place: ClassVar[str] = "front"
  ids: Ids = Ids()
  most: int | None = None

  @property
  def features(self) -> dict[str, Feature]:
    """Features of positions, by name."""
    pad = self.ids.pad
    return {
      "inputs": Feature("inputs", pad=pad),
      "prompt_index": Feature("inputs", pad=-1),
      "targets": Feature("targets", pad=pad),
      "decoder_inputs": Feature("targets", pad=pad),
      "decoder_prompt_index": Feature("targets", pad=-1),
    }

  @property
  def segments(self) -> dict[str, Feature]:
    """Features of packed rows, which say what belongs to which example."""
    axes = {one.axis for one in self.features.values()}
    return {name: one for name, one in SEGMENTS.items() if one.axis in axes}

  def reserved(self, lengths: Mapping[str, int]) -> dict[str, int]:
    """Axis -> positions that are reserved on it.

    Args:
      lengths: of prompts, by side (`PromptedModel.lengths`).
    """
    return {
      "inputs": lengths.get("encoder", 0),
      "targets": lengths.get("decoder", 0),
    }

  def read_ids(self, ids: Any) -> Any:
    """The ids of an input as tasks give it, closed by an end mark, that are read."""
    ends = not self.closed and len(ids) > 0 and ids[-1] == self.ids.end
    return ids[:-1] if ends else ids

  def starts(self, inputs_BT: Any, place: str, mark_B: Any = None, xp: Any = np) -> Any:
    """Where the reserved positions of each input begin [B].

    Args:
      inputs_BT: token ids. place: one of `PLACES`; "end" is before the last token.
      mark_B: tokens before the mark of a template, for the place "mark".
      xp: see the head of the file.
    """
    count_B = xp.sum(_int32(self.ids.is_real(inputs_BT), xp), axis=1)
    last_B = xp.maximum(_int32(count_B, xp) - 1, 0)
    if place == "mark":
      return xp.minimum(xp.maximum(mark_B, 0), last_B)
    if place == "end":
      return last_B
    first_B = xp.minimum(_int32(count_B, xp), 1)
    return first_B if place == "after_first" else xp.zeros_like(first_B)

  def read(
    self, inputs_BT: Any, lengths: Mapping[str, int], at_B: Any = None, xp: Any = np
  ) -> dict[str, Any]:
    """Features of what is read [B T+P].

    Args:
      inputs_BT: token ids. lengths: of prompts, by side. at_B: of `starts`; None for
        the front. xp: see the head of the file.
    """
    length = self.reserved(lengths)["inputs"]
    ids, index = reserve(inputs_BT, at_B, length, self.ids.reserved, xp)
    return {"inputs": ids, "prompt_index": index}

  def written(
    self,
    targets_BU: Any,
    lengths: Mapping[str, int],
    inputs_BT: Any = None,
    xp: Any = np,
  ) -> dict[str, Any]:
    """Features of what is written [B P+U], and of what each target follows.

    Args:
      targets_BU: token ids, end marks included. lengths: of prompts, by side.
      inputs_BT: ids that were read. xp: see the head of the file.
    """
    del inputs_BT
    length = self.reserved(lengths)["targets"]
    start_B1 = xp.full_like(targets_BU[:, :1], self.ids.start)
    follows_BU = shifted(start_B1, targets_BU, xp)
    ids, index = reserve(follows_BU, None, length, self.ids.reserved, xp)
    front_BP = xp.full((targets_BU.shape[0], length), self.ids.pad, dtype="int32")
    targets = xp.concatenate([front_BP, _int32(targets_BU, xp)], axis=1)
    return {"targets": targets, "decoder_inputs": ids, "decoder_prompt_index": index}

  def convert(
    self,
    inputs_BT: Any,
    targets_BU: Any,
    lengths: Mapping[str, int],
    at_B: Any = None,
    xp: Any = np,
  ) -> dict[str, Any]:
    """All features of rows; see `read` and `written`."""
    return {
      **self.read(inputs_BT, lengths, at_B, xp),
      **self.written(targets_BU, lengths, inputs_BT, xp),
    }


FORM = EncoderDecoder()


@dataclasses.dataclass(frozen=True)
class Encoder(EncoderDecoder):
  """Inputs alone: a mark, the text, a mark, and what is padded behind.

  `Ids.start` opens a row and `Ids.end` closes it. Nothing is written, so that labels
  are all that a head learns from.
  """

  opened: ClassVar[int] = 1
  writes: ClassVar[bool] = False
  place: ClassVar[str] = "after_first"

  @property
  def features(self) -> dict[str, Feature]:
    found = super().features
    return {name: found[name] for name in ("inputs", "prompt_index")}

  def reserved(self, lengths: Mapping[str, int]) -> dict[str, int]:
    return {"inputs": lengths.get("encoder", 0)}

  def starts(self, inputs_BT: Any, place: str, mark_B: Any = None, xp: Any = np) -> Any:
    """As of others; the mark of a template is counted without the opening one."""
    mark_B = None if mark_B is None else xp.maximum(mark_B, 0) + 1
    return super().starts(self._open(inputs_BT, xp), place, mark_B, xp)

  def read(
    self, inputs_BT: Any, lengths: Mapping[str, int], at_B: Any = None, xp: Any = np
  ) -> dict[str, Any]:
    """Features of what is read [B 1+T+P], the opening mark included."""
    return super().read(self._open(inputs_BT, xp), lengths, at_B, xp)

  def written(
    self,
    targets_BU: Any,
    lengths: Mapping[str, int],
    inputs_BT: Any = None,
    xp: Any = np,
  ) -> dict[str, Any]:
    """Nothing."""
    return {}

  def _open(self, inputs_BT: Any, xp: Any) -> Any:
    inputs_BT = _int32(inputs_BT, xp)
    mark_B1 = xp.full((inputs_BT.shape[0], 1), self.ids.start, dtype="int32")
    return xp.concatenate([mark_B1, inputs_BT], axis=1)


@dataclasses.dataclass(frozen=True)
class Causal(EncoderDecoder):
  """What one causal stack reads and then writes, in two pieces.

  The stack sees [inputs T][decoder_inputs U] as one row, whose states at the second
  piece are those of the targets. The first target follows the last token of the input,
  so that this token opens the second piece: the first keeps it for prompts to read, and
  hides it from the stack. Virtual positions of the side "decoder" stand in the first
  piece. An input is read without the end mark.
  """

  closed: ClassVar[bool] = False
  joined: ClassVar[bool] = True

  @property
  def features(self) -> dict[str, Feature]:
    found = super().features
    del found["decoder_prompt_index"]
    return found

  def reserved(self, lengths: Mapping[str, int]) -> dict[str, int]:
    return {"inputs": lengths.get("decoder", 0), "targets": 0}

  def written(
    self,
    targets_BU: Any,
    lengths: Mapping[str, int],
    inputs_BT: Any = None,
    xp: Any = np,
  ) -> dict[str, Any]:
    first_B1 = self.last(inputs_BT, xp)
    targets = _int32(targets_BU, xp)
    return {"targets": targets, "decoder_inputs": shifted(first_B1, targets, xp)}

  def last(self, inputs_BT: Any, xp: Any = np) -> Any:
    """The last token of each input [B 1]; `Ids.start` where there is none."""
    start_B1 = xp.full((inputs_BT.shape[0], 1), self.ids.start, dtype="int32")
    if isinstance(inputs_BT.shape[1], int) and inputs_BT.shape[1] == 0:
      return start_B1
    count_B1 = xp.sum(_int32(self.ids.is_real(inputs_BT), xp), axis=1)[:, None]
    at_B1 = xp.maximum(_int32(count_B1, xp) - 1, 0)
    last_B1 = _int32(xp.take_along_axis(inputs_BT, at_B1, axis=1), xp)
    return xp.where(count_B1 > 0, last_B1, start_B1)


def reserve(
  ids_BT: Any, at_B: Any, length: int, reserved: int, xp: Any = np
) -> tuple[Any, Any]:
  """Rows with `length` virtual positions put in [B T+P], and their prompt_index.

  Args:
    ids_BT: token ids. at_B: where they begin in each row; None for the front.
    reserved: what stands there. xp: see the head of the file.
  """
  B, T = ids_BT.shape
  ids_BT = _int32(ids_BT, xp)
  column_1X = xp.arange(T + length, dtype="int32")[None]
  at_B1 = xp.zeros((B, 1), dtype="int32") if at_B is None else _int32(at_B, xp)[:, None]
  place_BX = column_1X - at_B1
  virtual_BX = (place_BX >= 0) & (place_BX < length)
  if isinstance(T, int) and T == 0:
    ids_BT, T = xp.full((B, 1), reserved, dtype="int32"), 1
  source_BX = xp.where(place_BX < 0, column_1X, column_1X - length)
  source_BX = xp.minimum(xp.maximum(source_BX, 0), T - 1)
  ids_BX = xp.take_along_axis(ids_BT, source_BX, axis=1)
  ids_BX = xp.where(virtual_BX, xp.full_like(ids_BX, reserved), ids_BX)
  return ids_BX, xp.where(virtual_BX, place_BX, xp.full_like(place_BX, -1))


def shifted(first_B1: Any, targets_BU: Any, xp: Any = np) -> Any:
  """What each target follows [B U]: `first`, then the targets but for the last."""
  rest = targets_BU[:, :-1]
  return xp.concatenate([_int32(first_B1, xp), _int32(rest, xp)], axis=1)


def _int32(values: Any, xp: Any) -> Any:
  return xp.asarray(values, dtype="int32")

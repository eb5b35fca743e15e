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

from prompt_tuning.core.format import BY_EXAMPLE, FORM, PLACES, EncoderDecoder
from prompt_tuning.data.task import MARK

# Lengths that follow from examples are multiples of this.
ROUND = 16


@dataclasses.dataclass(frozen=True)
class Layout:
  """How examples are laid out.

  Attributes:
    inputs: T, positions for inputs: not counted are the reserved ones, and the mark
      that opens a text where the format has one.
    targets: U, positions for targets.
    encoder_prompt, decoder_prompt: reserved positions of each side's prompts.
    place: one of `core.format.PLACES`, for those that stand in the inputs.
    truncate: cut what is too long (True), or refuse it (False).
    form: the format of the backbone; see `of`.
  """

  inputs: int
  targets: int
  encoder_prompt: int = 0
  decoder_prompt: int = 0
  place: str = "front"
  truncate: bool = False
  form: EncoderDecoder = FORM

  @classmethod
  def of(
    cls,
    model: Any,
    inputs: int,
    targets: int,
    place: str | None = None,
    truncate: bool = False,
  ) -> "Layout":
    """The layout of a `core.model.PromptedModel`: its format and its prompts.

    `place` is that of the format for None.
    """
    sides = (model.lengths.get(side, 0) for side in ("encoder", "decoder"))
    form = model.backbone.format
    return cls(inputs, targets, *sides, place or form.place, truncate, form)

  def __post_init__(self) -> None:
    if self.place not in PLACES:
      raise ValueError(f"`PROMPT_PLACE` must be one of {PLACES}, got {self.place!r}.")
    for name in ("inputs", "targets"):
      if getattr(self, name) < 1:
        raise ValueError(
          f"`TASK_FEATURE_LENGTHS[{name!r}]` must be at least 1, got "
          f"{getattr(self, name)}."
        )
    longest, most = self.lengths["inputs"], self.form.most
    if most is not None and longest > most:
      raise ValueError(
        f"`TASK_FEATURE_LENGTHS['inputs']` is {self.inputs}, which with the marks and "
        f"{self.encoder_prompt} positions of the prompt makes rows of {longest}; this "
        f"backbone has {most} positions. Take {self.inputs - longest + most} at most, "
        "and TRUNCATE = True where texts are longer."
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
  def said(self) -> dict[str, Any]:
    """What cards say of it; the format is the backbone's."""
    names = (field.name for field in dataclasses.fields(self) if field.name != "form")
    return {name: getattr(self, name) for name in names}

  @property
  def reserved(self) -> dict[str, int]:
    """Reserved positions of "inputs" and of "targets"."""
    return self.form.reserved(self._prompts)

  @property
  def lengths(self) -> dict[str, int]:
    """Length of each model feature of an unpacked row."""
    sizes = {axis: getattr(self, axis) + n for axis, n in self.reserved.items()}
    sizes["inputs"] += self.form.opened
    return {name: sizes[one.axis] for name, one in self.form.features.items()}

  @property
  def _prompts(self) -> dict[str, int]:
    return {"encoder": self.encoder_prompt, "decoder": self.decoder_prompt}

  def convert(self, example: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Model features of one example (numpy ids, end marks included), unpadded.

    Raises:
      ValueError: if it is too long and `truncate` is off, or lacks its mark.
    """
    inputs_1T = self.form.read_ids(self._fitted("inputs", example))[None]
    targets = self._fitted("targets", example) if self.form.writes else np.zeros(0)
    targets_1U = targets[None]
    mark = int(example.get("mark", -1))
    if self.place == "mark" and mark < 0:
      raise ValueError(
        f"`PROMPT_PLACE` is 'mark', but the input has no {MARK}: write it once "
        "in the template of the task's inputs."
      )
    at_1 = self.form.starts(inputs_1T, self.place, np.array([mark], np.int32))
    rows = self.form.convert(inputs_1T, targets_1U, self._prompts, at_1)
    features = {name: row[0] for name, row in rows.items()}
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


def _cut(ids: np.ndarray, length: int) -> np.ndarray:
  """At most `length` ids; the last one, an end mark, is kept."""
  if len(ids) <= length:
    return ids
  return np.concatenate([ids[: length - 1], ids[-1:]])


def pad(
  features: Mapping[str, np.ndarray],
  lengths: Mapping[str, int],
  form: EncoderDecoder = FORM,
) -> dict[str, np.ndarray]:
  """Fills each sequence up to its length; other features pass.

  Args:
    features: of `Layout.convert`. lengths: of `Layout`. form: says what pads.
  """
  padded = {}
  for name, value in features.items():
    if name in lengths:
      row = np.full(lengths[name], form.features[name].pad, np.int32)
      row[: len(value)] = value
      value = row
    padded[name] = value
  return padded

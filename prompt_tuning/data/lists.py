"""Tasks from Python lists, for notebooks and `tune`."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from prompt_tuning.data import sequences
from prompt_tuning.data.task import MARK, Example, TextTask
from prompt_tuning.data.texts import no_text, short, some

Pairs = Sequence[tuple[str, str]]
SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Lists(TextTask):
  """Lists of (input, target) texts.

  Attributes:
    train, validation, test: the pairs of each split; at least one split. A list may be
      a tuple, an array or a column, see `data.sequences`, and so may a pair; an array
      or a frame of two columns holds pairs, too.
  """

  train: Pairs | None = None
  validation: Pairs | None = None
  test: Pairs | None = None
  name: str = dataclasses.field(default="lists", kw_only=True)
  metrics: Sequence[str] = dataclasses.field(default=("accuracy",), kw_only=True)

  def __post_init__(self) -> None:
    for split in SPLITS:
      value = getattr(self, split)
      if value is not None:
        self._set(split, pairs(value, f"Lists.{split}"))
    if not self.splits:
      raise ValueError("`Lists` has no examples: give `train`, a list of text pairs.")
    super().__post_init__()
    for split in self.splits:
      for i, (text, target) in enumerate(getattr(self, split)):
        where = f"`Lists.{split}[{i}]`"
        if text.count(MARK) > 1:
          raise ValueError(f"{where} holds {MARK} more than once: {short(text)}.")
        if not target.strip():
          raise ValueError(f"{where} has an empty target. Its input is {short(text)}.")
        _, unknown = self._settled(target)
        if unknown is not None:
          raise ValueError(
            f"{where} has the target {short(unknown)}, which is not among "
            f"`Lists.labels`, {some(self.labels)}."
          )

  @property
  def splits(self) -> tuple[str, ...]:
    """Those of "train", "validation" and "test" that were given."""
    return tuple(split for split in SPLITS if getattr(self, split))

  def _read(self, split: str) -> list[Example]:
    pairs = getattr(self, split)
    return [{"inputs": i, "targets": self._settled(t)[0]} for i, t in pairs]


def pairs(value: Any, argument: str) -> list[tuple[str, str]]:
  """Pairs of texts in any list that `data.sequences` knows.

  Raises:
    ValueError: naming the argument, and the item where there is one, for what is no
      list of pairs of texts.
  """
  what = "a list of pairs of texts"
  if hasattr(value, "__array__") and getattr(value, "ndim", 0) == 2:
    found = np.asarray(value).tolist()
  else:
    found = sequences.items(value, argument, what)
  return [_pair(item, f"`{argument}[{i}]`") for i, item in enumerate(found)]


def _pair(item: Any, where: str) -> tuple[str, str]:
  if isinstance(item, str) or len(texts := _items(item, where)) != 2:
    raise ValueError(f"{where} must be (input text, target text), got {short(item)}.")
  for text in texts:
    if not isinstance(text, str):
      raise ValueError(
        f"{where} must be (input text, target text), got {short(item)}, where "
        f"{short(text)} is no text."
      )
    fault = no_text(text)
    if fault:
      raise ValueError(f"{where} holds {fault}: {short(text)}. Take it out.")
  return str(texts[0]), str(texts[1])


def _items(item: Any, where: str) -> list[Any]:
  return sequences.items(item, where.strip("`"), "(input text, target text)")

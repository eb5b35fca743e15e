"""Tasks from Python lists, for notebooks and `tune`."""

import dataclasses
from collections.abc import Sequence

from prompt_tuning.data.task import MARK, Example, TextTask

Pairs = Sequence[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Lists(TextTask):
  """Lists of (input, target) texts.

  Attributes:
    train, validation, test: the pairs of each split; at least one split.
  """

  train: Pairs | None = None
  validation: Pairs | None = None
  test: Pairs | None = None
  name: str = dataclasses.field(default="lists", kw_only=True)
  metrics: Sequence[str] = dataclasses.field(default=("accuracy",), kw_only=True)

  def __post_init__(self) -> None:
    if not self.splits:
      raise ValueError("`Lists` has no examples: give `train`, a list of text pairs.")
    super().__post_init__()
    for split in self.splits:
      for i, pair in enumerate(getattr(self, split)):
        self._check(pair, f"`Lists.{split}[{i}]`")

  def _check(self, pair: tuple[str, str], where: str) -> None:
    fits = isinstance(pair, list | tuple) and len(pair) == 2
    if not fits or not all(isinstance(text, str) for text in pair):
      raise ValueError(f"{where} must be (input text, target text), got {pair!r}.")
    if pair[0].count(MARK) > 1:
      raise ValueError(f"{where} holds {MARK} more than once: {pair[0]!r}.")
    if not pair[1].strip():
      raise ValueError(f"{where} has an empty target. Its input is {pair[0]!r}.")
    if self.labels is not None and pair[1] not in self.labels:
      raise ValueError(
        f"{where} has the target {pair[1]!r}, which is not among `Lists.labels`, "
        f"{list(self.labels)}."
      )

  @property
  def splits(self) -> tuple[str, ...]:
    """Those of "train", "validation" and "test" that were given."""
    return tuple(
      split for split in ("train", "validation", "test") if getattr(self, split)
    )

  def _read(self, split: str) -> list[Example]:
    return [{"inputs": i, "targets": t} for i, t in getattr(self, split)]

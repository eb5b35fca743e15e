"""A few examples of each label instead of a whole training split.

The draw depends on the seed, the label and the order of the split alone: 8 shots are
among the 16 of the same seed, and validation examples never change the training ones.
"""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from prompt_tuning.data.metric_needs import MOST_CLASSES
from prompt_tuning.data.task import Example, TextTask, picked
from prompt_tuning.data.texts import short

# The split under which a wrapped task's own validation stays to be had.
FULL = "full_validation"


@dataclasses.dataclass(frozen=True)
class FewShot(TextTask):
  """A task whose training split is `shots` examples of each label.

  Attributes:
    task: the task to draw from; any TextTask with a split "train".
    shots: examples of each label. Without labels, of each target where these are few
      and repeat and there are enough of each; else altogether, which is said.
    seed: of the draw.
    validation_shots: as many of each label, none of them in "train", become the split
      "validation", as in Gao et al., 2021, "Making Pre-trained Language Models Better
      Few-shot Learners"; the task's own is then "full_validation". None keeps the
      task's own.
    name, labels, metrics: the task's where not given.
  """

  task: TextTask
  shots: int
  seed: int = 0
  validation_shots: int | None = None
  name: str = dataclasses.field(default="", kw_only=True)

  def __post_init__(self) -> None:
    check(self.shots, self.seed, "FewShot.shots", "FewShot.seed")
    if self.validation_shots is not None:
      check(self.validation_shots, 0, "FewShot.validation_shots", "FewShot.seed")
    if "train" not in self.task.splits:
      raise ValueError(
        f"`FewShot.task`, {self.task.name!r}, has no split 'train' to draw from. It "
        f"has {list(self.task.splits)}."
      )
    self._set("name", self.name or f"{self.task.name}_{self.shots}shot_{self.seed}")
    self._set("labels", self.task.labels if self.labels is None else self.labels)
    self._set("metrics", self.metrics or self.task.metrics)
    self._set("separator", self.separator or self.task.separator)
    super().__post_init__()

  @property
  def splits(self) -> tuple[str, ...]:
    """The task's splits, and "full_validation" where "validation" is drawn."""
    splits = self.task.splits
    if self.validation_shots is None:
      return splits
    own = (FULL,) if "validation" in splits else ()
    rest = tuple(split for split in splits if split not in ("train", "validation"))
    return ("train", "validation", *rest, *own)

  @property
  def judged(self) -> bool:
    """Whether `score` says anything."""
    return bool(self.metrics) or self.task.judged

  def score(
    self, predictions: Sequence[str], split: str, numbers: Sequence[int] | None = None
  ) -> dict[str, float]:
    """As `TextTask.score`; without `metrics`, as the task scores the same examples."""
    if self.metrics:
      return super().score(predictions, split, numbers)
    self.check_split(split)
    source, places = split, numbers
    if split in self._drawn:
      source, places = "train", picked(self._chosen(split), numbers)
    elif split == FULL:
      source = "validation"
    return self.task.score(predictions, source, places)

  @property
  def _drawn(self) -> tuple[str, ...]:
    return ("train",) if self.validation_shots is None else ("train", "validation")

  def _read(self, split: str) -> list[Example]:
    if split not in self._drawn:
      return self.task.examples("validation" if split == FULL else split)
    examples = self.task.examples("train")
    return [examples[i] for i in self._chosen(split)]

  def _chosen(self, split: str) -> list[int]:
    """Which of the task's training examples a drawn split holds."""
    examples = self.task.examples("train")
    sizes = [self.shots, *([self.validation_shots] if len(self._drawn) > 1 else [])]
    chosen = draw(
      [example["targets"] for example in examples],
      self.labels if self.separator is None else None,
      sizes,
      self.seed,
      "FewShot.shots",
      f"the training split of {self.task.name!r}",
    )
    return chosen[self._drawn.index(split)]


def check(shots: Any, seed: Any, shots_argument: str, seed_argument: str) -> None:
  """Raises ValueError unless both are whole numbers, from 1 and from 0 on."""
  for value, least, argument in ((shots, 1, shots_argument), (seed, 0, seed_argument)):
    if (
      isinstance(value, bool)
      or not isinstance(value, int | np.integer)
      or value < least
    ):
      raise ValueError(
        f"`{argument}` must be a whole number, at least {least}, got {value!r}."
      )


def draw(
  targets: Sequence[str],
  labels: Sequence[str] | None,
  sizes: Sequence[int],
  seed: int,
  argument: str,
  source: str,
) -> list[list[int]]:
  """Draws disjoint sets of examples, each with so many of every label.

  Args:
    targets: the label of each example.
    labels: all labels; None takes the targets for labels where these are few, repeat
      and suffice, and else draws from all examples alike, which is said.
    sizes: examples of each label in each set.
    seed: of the draw.
    argument, source: who asks and what is drawn from, for messages.

  Returns:
    For each size the numbers of its examples, in rising order.

  Raises:
    ValueError: if a label has too few examples.
  """
  for size in sizes:
    check(size, seed, argument, "seed")
  own: dict[str, list[int]] = {}
  for i, target in enumerate(targets):
    own.setdefault(target, []).append(i)
  groups: dict[str | None, list[int]]
  if labels or _are_labels(own, len(targets), sum(sizes), argument, source):
    groups = {label: own.get(label, []) for label in sorted(labels or own)}
  else:
    groups = {None: list(range(len(targets)))}
  chosen: list[list[int]] = [[] for _ in sizes]
  for label, numbers in groups.items():
    if len(numbers) < sum(sizes):
      what = "examples" if label is None else f"examples of the label {label!r}"
      raise ValueError(
        f"`{argument}` asks for {' + '.join(map(str, sizes))} {what}, but {source} has "
        f"{len(numbers)}. Lower it."
      )
    order = np.random.default_rng([seed, *(label or "").encode()]).permutation(numbers)
    start = 0
    for taken, size in zip(chosen, sizes, strict=True):
      taken.extend(int(i) for i in order[start : start + size])
      start += size
  return [sorted(numbers) for numbers in chosen]


def _are_labels(
  own: dict[str, list[int]], count: int, size: int, argument: str, source: str
) -> bool:
  """Whether targets are drawn by, though nobody named them as labels; says if not."""
  if not 1 < len(own) <= min(MOST_CLASSES, count // 2):
    why = f"{len(own)} different targets in {count} examples are no classes"
  else:
    fewest = min(own, key=lambda target: len(own[target]))
    if len(own[fewest]) >= size:
      return True
    why = f"only {len(own[fewest])} examples have the target {short(fewest)}"
  logging.warning(
    "`%s`: the task names no labels, and %s in %s, so %d examples are drawn "
    "altogether, whatever their targets. For as many of each class, name the labels "
    "(LABELS).",
    argument,
    why,
    source,
    size,
  )
  return False

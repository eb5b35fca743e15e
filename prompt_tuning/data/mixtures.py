"""Several tasks as one, each example with the number of its task.

Proportional rates are those of Raffel et al., 2020, "Exploring the Limits of Transfer
Learning with a Unified Text-to-Text Transformer": min(examples, cap) of each task.
"""

import bisect
import dataclasses
import itertools
import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np

from prompt_tuning.data import metrics as metric_room
from prompt_tuning.data import sequences
from prompt_tuning.data.rates import Subsets, TaskSubset, Temperature
from prompt_tuning.data.task import (
  Dataset,
  Example,
  SeqioTask,
  TextTask,
  Vocabulary,
  check_epochs,
  picked,
)

RATES = ("equal", "proportional")
RATE_LIST = (
  f"one of {RATES}, a list of numbers, one a task, or made by Temperature or TaskSubset"
)


@dataclasses.dataclass(frozen=True)
class Mixture(TextTask):
  """Tasks mixed by rates; `task` numbers them from 0 in the order given.

  Attributes:
    tasks: at least one task, each with a name of its own.
    rates: one number above 0 for each task, "equal", "proportional" to the size of
      the training split, or made by a rule of `data.rates`.
    cap: most examples of a task that rates by size count, or None.
    labels: the tasks' where all have the same, else None: rank choice then goes task
      by task.
    metrics: unused; each task has its own.
  """

  tasks: Sequence[TextTask]
  rates: str | Sequence[float] | Temperature | TaskSubset = "proportional"
  cap: int | None = None
  name: str = dataclasses.field(default="mixture", kw_only=True)

  def __post_init__(self) -> None:
    what = "a list of tasks"
    self._set("tasks", tuple(sequences.items(self.tasks, "Mixture.tasks", what)))
    for task in self.tasks:
      if not isinstance(task, TextTask):
        raise ValueError(f"`Mixture.tasks` holds {task!r}; each must be a task.")
    names = [task.name for task in self.tasks]
    if not names or len(set(names)) < len(names):
      raise ValueError(
        f"`Mixture.tasks` must be one or more tasks of different names, got {names}. "
        "Set each one's `name`."
      )
    self._check_rates()
    self._check_labels()
    super().__post_init__()

  def _check_labels(self) -> None:
    each = {task.labels for task in self.tasks}
    common = self.tasks[0].labels if len(each) == 1 else None
    if self.labels is not None and common != tuple(self.labels):
      raise ValueError(
        f"`Mixture.labels` is {list(self.labels)}, but each of its tasks has labels of "
        "its own. Set those of a task in its scope: NAME/files.Files.labels = [...]."
      )
    self._set("labels", common)

  def _check_rates(self) -> None:
    by_size = self.rates == "proportional" or self._ruled
    if self._ruled:
      fits = True
      if isinstance(self.rates, TaskSubset):
        self.rates.check(len(self.tasks))
    elif isinstance(self.rates, str):
      fits = self.rates in RATES
    else:
      self._set("rates", tuple(sequences.items(self.rates, "Mixture.rates", RATE_LIST)))
      fits = all(map(is_rate, self.rates))
      fits = fits and len(self.rates) == len(self.tasks)
      fits = fits and math.isfinite(sum(self.rates))
    if not fits:
      raise ValueError(
        f"`Mixture.rates` must be one of {RATES} or {len(self.tasks)} numbers above 0, "
        f"one a task, none without bound, got {self.rates!r}."
      )
    if self.cap is None:
      return
    whole = isinstance(self.cap, int) and not isinstance(self.cap, bool)
    if not whole or self.cap < 1 or not by_size:
      raise ValueError(
        f"`Mixture.cap` must be a whole number, at least 1, and goes with rates by "
        f"size ('proportional', Temperature, TaskSubset), got {self.cap!r} with "
        f"{self.rates!r}."
      )

  @property
  def _ruled(self) -> bool:
    return isinstance(self.rates, Temperature | TaskSubset)

  @property
  def splits(self) -> tuple[str, ...]:
    """Splits that at least one task has."""
    return tuple(dict.fromkeys(split for task in self.tasks for split in task.splits))

  @property
  def streams(self) -> bool:
    """False where all examples are drawn alike, or batch by batch from memory."""
    if isinstance(self.rates, TaskSubset):
      return False
    return self.rates != "proportional" or self.cap is not None

  @property
  def by_batch(self) -> bool:
    """Whether the tasks of each batch are drawn for it; then all examples are held."""
    return isinstance(self.rates, TaskSubset)

  def ordered(self, examples: Sequence[Any]) -> Sequence[Any]:
    """Tokenised training examples; with an `order` where the rates are by batch."""
    if not self.by_batch:
      return examples
    self.rates.check(len(self._having("train")))
    place = {number: k for k, (number, _) in enumerate(self._having("train"))}
    owners = [place[int(example["task"])] for example in examples]
    return Subsets(examples, owners, self.rates, self.weights())

  @property
  def judged(self) -> bool:
    """Whether `score` says anything of some task."""
    return any(task.judged for task in self.tasks)

  def weights(self, split: str = "train") -> tuple[float, ...]:
    """The share of each task that has the split, in order; they add up to 1."""
    tasks = self._having(split)
    if self.rates == "equal":
      rates = [1.0] * len(tasks)
    elif self.rates == "proportional" or self._ruled:
      sizes = [len(task.examples(split)) for _, task in tasks]
      rates = [min(size, self.cap or size) for size in sizes]
      rates = self.rates.rates(rates) if self._ruled else rates
    else:
      rates = [self.rates[number] for number, _ in tasks]
    return tuple(float(rate) / sum(rates) for rate in rates)

  def build(self, vocabulary: Vocabulary) -> SeqioTask:
    """A `seqio.Mixture` of the tasks at their training rates, not registered.

    It follows SeqIO's own rules for order and epochs, and has no `task` feature.
    """
    import seqio

    weights = dict.fromkeys((task.name for task in self.tasks), 0.0)
    having = [task.name for _, task in self._having("train")]
    weights.update(zip(having, self.weights("train"), strict=True))
    pairs = [(task.build(vocabulary), weights[task.name]) for task in self.tasks]
    return seqio.Mixture(self.name, pairs)

  def dataset(
    self,
    vocabulary: Vocabulary,
    split: str,
    shuffle: bool = False,
    seed: int = 0,
    epochs: int | None = 1,
  ) -> Dataset:
    """Single tokenised examples with `task`; see `TextTask.dataset`.

    Without end (epochs = None) the rates say how often each task is drawn. A finite
    number of epochs holds every example of every task as often: unshuffled task after
    task, shuffled in an order drawn by the rates until each task has run out.
    """
    import tensorflow as tf

    check_epochs(epochs)
    parts = [
      _numbered(task.dataset(vocabulary, split, shuffle, seed, epochs), number)
      for number, task in self._having(split)
    ]
    # Rows of one batch are alike: vectors that not all tasks bring are left out.
    if not all("external" in part.element_spec for part in parts):
      parts = [part.map(_without_vectors) for part in parts]
    if not shuffle and epochs is not None:
      whole = parts[0]
      for part in parts[1:]:
        whole = whole.concatenate(part)
      return whole
    return tf.data.Dataset.sample_from_datasets(
      parts, list(self.weights(split)), seed=seed, stop_on_empty_dataset=False
    )

  def tokens(
    self, vocabulary: Vocabulary, split: str, first: int | None = None
  ) -> list[dict[str, Any]]:
    """As `TextTask.tokens`, with `task`."""
    rows = [
      {"mark": np.int32(-1), **row, "task": np.int32(number)}
      for number, task in self._having(split)
      for row in task.tokens(vocabulary, split, first)
    ]
    if not all("external" in row for row in rows):
      rows = [_without_vectors(row) for row in rows]
    return rows[:first]

  def score(
    self, predictions: Sequence[str], split: str, numbers: Sequence[int] | None = None
  ) -> dict[str, float]:
    """Each task's scores as "task/metric", and "mean"; see `TextTask.score`.

    The mean is over the tasks that were scored, of the mean of each one's metrics.
    """
    tasks = [task for _, task in self._having(split)]
    sizes = (len(task.examples(split)) for task in tasks)
    starts = list(itertools.accumulate(sizes, initial=0))
    numbers = picked(range(starts[-1]), numbers)
    metric_room.check_count(len(numbers), len(predictions))
    answers: list[list[str]] = [[] for _ in tasks]
    places: list[list[int]] = [[] for _ in tasks]
    for number, prediction in zip(numbers, predictions, strict=True):
      i = bisect.bisect_right(starts, number) - 1
      answers[i].append(prediction)
      places[i].append(number - starts[i])
    scores, means = {}, []
    for task, own_answers, own_places in zip(tasks, answers, places, strict=True):
      own = task.score(own_answers, split, own_places) if own_answers else {}
      scores.update({f"{task.name}/{name}": value for name, value in own.items()})
      means += [sum(own.values()) / len(own)] if own else []
    return {**scores, "mean": sum(means) / len(means)} if means else scores

  def check_metrics(self, split: str) -> None:
    """Raises ValueError if some metric of a task cannot score its split."""
    for _, task in self._having(split):
      task.check_metrics(split)

  def _having(self, split: str) -> list[tuple[int, TextTask]]:
    self.check_split(split)
    return [(i, task) for i, task in enumerate(self.tasks) if split in task.splits]

  def _read(self, split: str) -> list[Example]:
    return [
      {**example, "task": number}
      for number, task in self._having(split)
      for example in task.examples(split)
    ]


def is_rate(value: Any) -> bool:
  """Whether a value is a finite number above 0."""
  if isinstance(value, bool) or not isinstance(value, Real):
    return False
  return math.isfinite(value) and value > 0


def _without_vectors(example: dict[str, Any]) -> dict[str, Any]:
  return {name: value for name, value in example.items() if name != "external"}


def _numbered(dataset: Dataset, number: int) -> Dataset:
  """Adds `task`, and `mark` where a source of another kind has none."""
  import tensorflow as tf

  def add(example: dict[str, Any]) -> dict[str, Any]:
    constants = {"task": tf.constant(number), "mark": tf.constant(-1)}
    return {**constants, **example, "task": constants["task"]}

  return dataset.map(add)

"""Tasks and mixtures of SeqIO's registry, named as T5X names them."""

import dataclasses
import difflib
import functools
import importlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prompt_tuning.data import judges, vocabularies
from prompt_tuning.data import metrics as metric_room
from prompt_tuning.data.task import (
  Dataset,
  Example,
  SeqioTask,
  TextTask,
  Vocabulary,
  check_epochs,
  picked,
)

_TEXTS = ("inputs_pretokenized", "targets_pretokenized")


@dataclasses.dataclass(frozen=True)
class Registered(TextTask):
  """A registered SeqIO task or mixture, read by SeqIO's own rules.

  Attributes:
    name: T5X's MIXTURE_OR_TASK_NAME.
    module: T5X's MIXTURE_OR_TASK_MODULE, whose import registers it; None if that has
      been done.
    lengths: {"inputs": ..., "targets": ...}, for preprocessors that ask for sequence
      lengths; None to cut nothing.
    labels: the registry knows none; give them for rank choice.
    metrics: names as everywhere; without any, a task is scored by the functions it was
      registered with, and a mixture task by task, as "task/metric".
  """

  name: str
  module: str | None = None
  lengths: Mapping[str, int] | None = None

  def __post_init__(self) -> None:
    if not isinstance(self.name, str) or not self.name:
      raise ValueError(
        f"`MIXTURE_OR_TASK_NAME` must be the name of a registered task, got "
        f"{self.name!r}."
      )
    super().__post_init__()

  @functools.cached_property
  def provider(self) -> SeqioTask:
    """What is registered under the name.

    Raises:
      ValueError: if the module cannot be imported or registers no such name.
    """
    import seqio

    if self.module:
      _import(self.module)
    known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
    if self.name not in known:
      near = difflib.get_close_matches(self.name, known, n=3)
      raise ValueError(
        f"`MIXTURE_OR_TASK_NAME` is {self.name!r}, which is not registered after "
        f"importing `MIXTURE_OR_TASK_MODULE` = {self.module!r}. "
        + (f"Near it are {near}." if near else "Name the module that registers it.")
      )
    return seqio.get_mixture_or_task(self.name)

  @property
  def splits(self) -> tuple[str, ...]:
    """The provider's splits, sorted."""
    return tuple(sorted(self.provider.splits))

  @property
  def streams(self) -> bool:
    """True: order, rates and random preprocessing are SeqIO's."""
    return True

  @property
  def judged(self) -> bool:
    """Whether `score` says anything."""
    return bool(self.metrics) or any(map(judges.has_metrics, self._tasks()))

  def build(self, vocabulary: Vocabulary) -> SeqioTask:
    """What is registered, once its features are seen to fit the vocabulary.

    Raises:
      ValueError: if it has no `inputs` or `targets`, or another vocabulary.
    """
    for task in self._tasks():
      what = f"The registered task {task.name!r}"
      if task.name != self.name:
        what += f", of the mixture {self.name!r},"
      for name in ("inputs", "targets"):
        feature = task.output_features.get(name)
        if feature is None:
          raise ValueError(
            f"{what} has no feature {name!r}, only {list(task.output_features)}. Use a "
            "text-to-text task."
          )
        if not vocabularies.same(feature.vocabulary, vocabulary):
          raise ValueError(
            f"{what} makes {name!r} with {feature.vocabulary}, but the backbone reads "
            f"{vocabulary}. Register the task with the "
            "backbone's vocabulary (a model file of the same bytes, and as many "
            "extra_ids), or use another backbone."
          )
    return self.provider

  def dataset(
    self,
    vocabulary: Vocabulary,
    split: str,
    shuffle: bool = False,
    seed: int = 0,
    epochs: int | None = 1,
  ) -> Dataset:
    """Single tokenised examples as the task makes them; see `TextTask.dataset`.

    End marks, caching and shuffling (through SeqIO's buffer) are the task's own; there
    is no `mark`.
    """
    check_epochs(epochs)
    self.check_split(split)
    self.build(vocabulary)
    dataset = self._raw(split, shuffle, seed, epochs)
    vocabulary = vocabularies.for_seqio(vocabulary)
    return dataset.map(functools.partial(_same_features, vocabulary=vocabulary))

  def tokens(
    self, vocabulary: Vocabulary, split: str, first: int | None = None
  ) -> list[dict[str, Any]]:
    """As `TextTask.tokens`, read through SeqIO."""
    rows = self.dataset(vocabulary, split).as_numpy_iterator()
    return list(itertools.islice(rows, first))

  def score(
    self, predictions: Sequence[str], split: str, numbers: Sequence[int] | None = None
  ) -> dict[str, float]:
    """As `TextTask.score`; without `metrics`, by the task's own metric functions."""
    if self.metrics:
      return super().score(predictions, split, numbers)
    last = None if numbers is None else max(numbers, default=-1) + 1
    rows = picked(list(itertools.islice(self._rows(split), last)), numbers)
    metric_room.check_count(len(rows), len(predictions))
    scores: dict[str, float] = {}
    for task in self._tasks(split):
      mine = [i for i, (owner, _) in enumerate(rows) if owner is task]
      examples = [rows[i][1] for i in mine]
      answers = [predictions[i] for i in mine]
      found = judges.score(task, examples, answers) if mine else {}
      prefix = f"{task.name}/" if task is not self.provider else ""
      scores.update({prefix + name: value for name, value in found.items()})
    return scores

  def _tasks(self, split: str | None = None) -> list[SeqioTask]:
    """The task, or those of the mixture; of a split, those that have it."""
    tasks = getattr(self.provider, "tasks", [self.provider])
    return [task for task in tasks if split is None or split in task.splits]

  def _rows(self, split: str) -> Iterator[tuple[SeqioTask, Mapping[str, Any]]]:
    """(task, its example with all features): those of a mixture in turns.

    So each part of a mixture's split, too, holds something of every task.
    """
    parts = []
    for task in self._tasks(split):
      examples = self._get(task, split, False, 0, 1).as_numpy_iterator()
      parts.append(zip(itertools.repeat(task), examples, strict=False))
    for row in itertools.zip_longest(*parts):
      yield from (pair for pair in row if pair is not None)

  def _raw(self, split: str, shuffle: bool, seed: int, epochs: int | None) -> Dataset:
    mixture = hasattr(self.provider, "tasks")
    if mixture and not shuffle and epochs == 1:
      return self._in_turns(split, seed)
    extra: dict[str, Any] = {"copy_pretokenized": True} if mixture else {}
    return self._get(self.provider, split, shuffle, seed, epochs, **extra)

  def _in_turns(self, split: str, seed: int) -> Dataset:
    """A mixture's split to evaluate, in the order of `_rows`."""
    import tensorflow as tf

    parts = []
    for task in self._tasks(split):
      own = task.output_features["targets"].vocabulary
      data = self._get(task, split, False, seed, 1)
      parts.append(data.map(functools.partial(_same_features, vocabulary=own)))
    turns = tf.data.Dataset.range(len(parts)).repeat()
    choose = tf.data.Dataset.choose_from_datasets
    return choose(parts, turns, stop_on_empty_dataset=False)

  def _get(
    self,
    provider: SeqioTask,
    split: str,
    shuffle: bool,
    seed: int,
    epochs: int | None,
    **extra: Any,
  ) -> Dataset:
    return provider.get_dataset(
      sequence_length=self.lengths,
      split=split,
      shuffle=shuffle,
      seed=seed,
      num_epochs=epochs,
      **extra,
    )

  def _read(self, split: str) -> list[Example]:
    vocabulary = self.provider.output_features["targets"].vocabulary
    dataset = self._raw(split, False, 0, 1).map(
      functools.partial(_same_features, vocabulary=vocabulary)
    )
    return [
      {"inputs": e[_TEXTS[0]].decode(), "targets": e[_TEXTS[1]].decode()}
      for e in dataset.as_numpy_iterator()
    ]


def _import(module: str) -> None:
  try:
    importlib.import_module(module)
  except ModuleNotFoundError as error:
    raise ValueError(
      f"`MIXTURE_OR_TASK_MODULE` is {module!r}, which cannot be imported: {error}. "
      "Install it, or put its folder on PYTHONPATH."
    ) from error


def _same_features(example: dict[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
  """The four features of the contract; texts are decoded where the task kept none."""
  import tensorflow as tf

  features = {}
  for name in ("inputs", "targets"):
    features[name] = tf.cast(example[name], tf.int32)
    text = example.get(f"{name}_pretokenized")
    features[f"{name}_pretokenized"] = (
      vocabulary.decode_tf(features[name]) if text is None else text
    )
  return features

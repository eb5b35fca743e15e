"""What a text task is: splits of (inputs, targets) texts, with labels and metrics.

Every task hands out the same things, wherever its text comes from: `examples` are
plain dicts of text, `build` makes a `seqio.Task` of them, `dataset` tokenises them, and
`score` compares predictions with a split. Nothing enters SeqIO's global registry.

TensorFlow and SeqIO are imported when a dataset is asked for, not before.
"""

import dataclasses
import re
import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from prompt_tuning.core.labels import joined, parts
from prompt_tuning.data import metric_needs, sequences, vocabularies
from prompt_tuning.data import metrics as metric_room
from prompt_tuning.data.texts import MARK as MARK

# "inputs" and "targets" are texts. What some metrics ask for beyond: "references", the
# accepted answers; "group", which examples are scored together; "label", a class that
# the target does not spell. What some prompts ask for: "task" and "external".
Example = dict[str, Any]

# These stand for types of modules that are imported late.
Vocabulary = Any  # vocabularies.Vocabulary or seqio.Vocabulary
SeqioTask = Any  # seqio.Task, or seqio.Mixture of several
Dataset = Any  # tf.data.Dataset


# Epoch e of seed s is shuffled with s * _STRIDE + e, so that seeds share no order.
_STRIDE = 1_000_003


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextTask:
  """A text-to-text task.

  A kind of task is a subclass that gives `splits` and `_read`.

  Attributes:
    name: letters, digits and any of "_.:" (SeqIO's rule).
    labels: the target strings of a classification task, which rank choice chooses
      among, or None. For a binary task the positive one stands last. A whole number or
      a truth value stands for its spelling: 0 for "0".
    metrics: names in `prompt_tuning/data/metrics.py`.
    separator: where a target names several labels, what stands between them ("none"
      names no label); None where it names one.
  """

  name: str = "task"
  labels: Sequence[str] | None = None
  metrics: Sequence[str] = ()
  separator: str | None = None

  def __post_init__(self) -> None:
    kind = type(self).__name__
    if not re.fullmatch(r"[\w.:]+", self.name):
      raise ValueError(
        f"`{kind}.name` is {self.name!r}; a task's name may hold only "
        "letters, digits and any of '_.:'."
      )
    if self.labels is not None:
      self._set(
        "labels", sequences.labels(self.labels, f"{type(self).__name__}.labels")
      )
    if isinstance(self.metrics, str):
      self._set("metrics", (self.metrics,))
    names = sequences.items(self.metrics, f"{kind}.metrics")
    self._set("metrics", tuple(names))
    self._check_separator(kind)
    metric_needs.check(self.metrics, self.labels, self.separator)
    self._set("_texts", {})
    self._set("_known", None if self.labels is None else frozenset(self.labels))

  def _check_separator(self, kind: str) -> None:
    if self.separator is None:
      return
    known = self.labels or ()
    inside = [label for label in known if self.separator in label]
    if not isinstance(self.separator, str) or not self.separator or not known or inside:
      raise ValueError(
        f"`{kind}.separator` (LABEL_SEPARATOR) is {self.separator!r}, but "
        f"{f'the label {inside[0]!r} holds it' if inside else 'there are no labels'}. "
        "It stands between the labels of one target, such as '|': give labels, and a "
        "text that is in none."
      )

  @property
  def splits(self) -> tuple[str, ...]:
    """Names of the splits there are."""
    raise NotImplementedError

  @property
  def streams(self) -> bool:
    """Whether training must draw from `dataset`, as `tokens` do not say enough."""
    return False

  @property
  def judged(self) -> bool:
    """Whether `score` says anything."""
    return bool(self.metrics)

  def _read(self, split: str) -> list[Example]:
    """The split's examples, in their own order."""
    raise NotImplementedError

  def examples(self, split: str) -> list[Example]:
    """Texts of a split, in order; read once and kept.

    Raises:
      ValueError: if there is no such split, or nothing in it.
    """
    self.check_split(split)
    if split not in self._texts:
      texts = self._read(split)
      if not texts:
        raise ValueError(
          f"The split {split!r} of the task {self.name!r} is empty. Check its source, "
          "and what filters it."
        )
      self._texts[split] = texts
    return list(self._texts[split])

  def check_split(self, split: str) -> None:
    """Raises ValueError for a split that there is not."""
    if split not in self.splits:
      raise ValueError(
        f"The task {self.name!r} has no split {split!r}. It has {list(self.splits)}."
      )

  def check_metrics(self, split: str) -> None:
    """Raises ValueError if some metric cannot score a split."""
    if self.metrics:
      examples = self.examples(split)
      metric_needs.check_examples(self.metrics, examples, self.labels, split)

  def _settled(self, target: str) -> tuple[str, str | None]:
    """A target as it is compared, and what of it is no label (None where all are).

    Several labels stand in the order of all, whatever the data's.
    """
    if self._known is None or (self.separator is None and target in self._known):
      return target, None
    if self.separator is None:
      return target, target
    held = parts(target, self.separator)
    unknown = next((one for one in held if one not in self._known), None)
    if unknown is not None:
      return target, unknown
    return joined(set(held), self.labels, self.separator), None

  def build(self, vocabulary: Vocabulary) -> SeqioTask:
    """A SeqIO task with `inputs` and `targets`, not registered.

    Its metric functions are those of `metrics` that need texts alone.
    """
    import seqio

    feature = seqio.Feature(vocabularies.for_seqio(vocabulary), add_eos=True)
    return seqio.Task(
      self.name,
      source=seqio.FunctionDataSource(self._source, splits=self.splits),
      preprocessors=[
        take_mark,
        seqio.preprocessors.tokenize,
        seqio.preprocessors.append_eos_after_trim,
      ],
      output_features={"inputs": feature, "targets": feature},
      metric_fns=[self._metric(name) for name in self._plain_metrics()],
    )

  def dataset(
    self,
    vocabulary: Vocabulary,
    split: str,
    shuffle: bool = False,
    seed: int = 0,
    epochs: int | None = 1,
  ) -> Dataset:
    """Single tokenised examples.

    Args:
      vocabulary: of the backbone.
      split: one of `splits`.
      shuffle: whole split, in an order of its own for each epoch; otherwise the order
        of the source is kept.
      seed: of the order. The same seed gives the same examples each time the dataset
        is read.
      epochs: how often the split is read, None for ever.

    Returns:
      `inputs` and `targets`, int32 ids with the end mark, neither cut nor padded;
      `inputs_pretokenized` and `targets_pretokenized`, their texts; `mark`, int32, how
      many ids of `inputs` stand before `MARK`, -1 without one; `task`, int32, in a
      mixture and where examples bring one, and `external`, float32, where they do.
    """
    check_epochs(epochs)
    count = len(self.examples(split))
    task = self.build(vocabulary)
    texts = task.source.get_dataset(split=split, shuffle=False)
    texts = in_epochs(texts, count, shuffle, seed, epochs)
    return task.preprocess_postcache(texts, sequence_length=None, seed=seed)

  def tokens(
    self, vocabulary: Vocabulary, split: str, first: int | None = None
  ) -> list[dict[str, Any]]:
    """What `dataset` yields unshuffled, as a list made without TensorFlow.

    The fast way to hold a split in memory; `first` examples only, where given.
    """
    rows = []
    for example in self.examples(split)[:first]:
      before, text = split_mark(example["inputs"])
      mark = -1 if before is None else len(vocabulary.encode(before))
      rows.append(
        {
          "inputs": _ids(vocabulary, text),
          "inputs_pretokenized": text.encode(),
          "targets": _ids(vocabulary, example["targets"]),
          "targets_pretokenized": example["targets"].encode(),
          "mark": np.int32(mark),
          **beside(example),
        }
      )
    return rows

  def score(
    self, predictions: Sequence[str], split: str, numbers: Sequence[int] | None = None
  ) -> dict[str, float]:
    """Scores predicted texts.

    Args:
      predictions: one for each example.
      split: one of `splits`.
      numbers: which of the split's examples were predicted; None for all, in order.

    Raises:
      ValueError: if there are more or fewer predictions than examples.
    """
    examples = picked(self.examples(split), numbers)
    targets = [example["targets"] for example in examples]
    known = self.labels, examples, self.separator
    return metric_room.score(self.metrics, targets, predictions, *known)

  def _set(self, field: str, value: Any) -> None:
    object.__setattr__(self, field, value)  # frozen for all others

  def _source(
    self, split: str, shuffle_files: bool = False, seed: int | None = None
  ) -> Dataset:
    import tensorflow as tf

    examples = self.examples(split)
    columns = {key: [e[key] for e in examples] for key in ("inputs", "targets")}
    columns |= {
      key: np.stack([e[key] for e in examples]) for key in beside(examples[0])
    }
    dataset = tf.data.Dataset.from_tensor_slices(columns)
    return dataset.shuffle(len(examples), seed=seed) if shuffle_files else dataset

  def _plain_metrics(self) -> list[str]:
    return [name for name in self.metrics if "examples" not in metric_room.reads(name)]

  def _metric(self, name: str) -> Any:
    def metric_fn(targets, predictions):
      known = self.labels, None, self.separator
      return metric_room.score((name,), targets, predictions, *known)

    return metric_fn


def beside(example: Example) -> dict[str, np.ndarray]:
  """What an example brings besides its text: `task`, a number, and `external`."""
  found = {}
  if "task" in example:
    found["task"] = np.int32(example["task"])
  if "external" in example:
    found["external"] = np.asarray(example["external"], np.float32)
  return found


def picked(items: Sequence[Any], numbers: Sequence[int] | None) -> list[Any]:
  """The items of these numbers; all of them for None."""
  return list(items) if numbers is None else [items[i] for i in numbers]


def check_epochs(epochs: int | None) -> None:
  """Raises ValueError unless `epochs` is None or at least 1."""
  if epochs is not None and epochs < 1:
    raise ValueError(
      f"`epochs` must be at least 1, or None to go on for ever, got {epochs}."
    )


def in_epochs(
  dataset: Dataset, count: int, shuffle: bool, seed: int, epochs: int | None
) -> Dataset:
  """Repeats a dataset of `count` elements, each epoch whole before the next begins.

  The order of an epoch depends on its number and the seed alone.
  """
  import tensorflow as tf

  if not shuffle:
    return dataset if epochs == 1 else dataset.repeat(epochs)
  data = tf.data.Dataset
  numbers = data.counter() if epochs is None else data.range(epochs)

  def epoch(number: Any) -> Dataset:
    return dataset.shuffle(
      count, seed=seed * _STRIDE + number, reshuffle_each_iteration=False
    )

  total = tf.data.INFINITE_CARDINALITY if epochs is None else count * epochs
  return numbers.flat_map(epoch).apply(tf.data.experimental.assert_cardinality(total))


def split_mark(text: str) -> tuple[str | None, str]:
  """(text before `MARK`, or None without one; the text without the mark).

  A mark between two words leaves one space; one inside a word splits it.
  """
  before, found, after = text.partition(MARK)
  if not found:
    return None, text
  # The white space that TensorFlow strips, and no other.
  before, after = (part.strip(string.whitespace) for part in (before, after))
  return before, f"{before} {after}".strip(string.whitespace)


def _ids(vocabulary: Vocabulary, text: str) -> np.ndarray:
  return np.array([*vocabulary.encode(text), vocabulary.eos_id], np.int32)


def take_mark(dataset: Dataset, output_features: dict[str, Any]) -> Dataset:
  """`split_mark` for datasets: adds `mark`, the ids that stood before it."""
  import tensorflow as tf

  encode = output_features["inputs"].vocabulary.encode_tf

  def take(example: dict[str, Any]) -> dict[str, Any]:
    parts = tf.strings.split(example["inputs"], MARK, maxsplit=1)
    found = tf.size(parts) > 1
    before, after = tf.strings.strip(parts[0]), tf.strings.strip(parts[-1])
    text = tf.strings.strip(tf.strings.join([before, after], " "))
    mark = tf.size(encode(tf.where(found, before, "")))
    return {
      **example,
      "inputs": tf.where(found, text, example["inputs"]),
      "mark": tf.where(found, mark, -1),
    }

  return dataset.map(take, num_parallel_calls=tf.data.AUTOTUNE)

"""Pre-training text as SeqIO tasks: span corruption, prefix language modelling, and
texts with a prompt and an answer.

Raffel et al., 2020, section 3.1.4 (span corruption: 15 % of tokens in spans of 3);
Lester et al., 2021, section 3.1 (prefix language modelling makes a T5 promptable).
"""

import dataclasses
from collections.abc import Callable, Sequence

import seqio
import tensorflow as tf

from prompt_tuning.data import vocabularies
from prompt_tuning.data.mixtures import is_rate
from prompt_tuning.data.task import TextTask, Vocabulary, check_epochs


def _open(directory: str, files: Sequence[str]) -> tf.data.Dataset:
  paths = [f"{directory.rstrip('/')}/{name}" for name in files]
  missing = [path for path in paths if not tf.io.gfile.exists(path)]
  if missing:
    raise ValueError(
      f"Pre-training files are missing: {missing}. Set PRETRAIN_DIR to the folder "
      "that holds them."
    )
  kinds = {"GZIP" if path.endswith(".gz") else "" for path in paths}
  if len(kinds) > 1:
    raise ValueError(f"Give either .gz or plain files, not both: {list(files)}.")
  # Files are read a block each in turn, so that every part of the run sees all of them.
  return tf.data.Dataset.from_tensor_slices(paths).interleave(
    lambda path: tf.data.TextLineDataset(path, compression_type=kinds.copy().pop()),
    cycle_length=len(paths),
    block_length=16,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Streamed(TextTask):
  """A task that is read from its files on and on, and never held in memory."""

  streams = True
  # Neighbouring pieces come from one document: this many are mixed.
  window = 8192

  def dataset(
    self,
    vocabulary: Vocabulary,
    split: str,
    shuffle: bool = False,
    seed: int = 0,
    epochs: int | None = 1,
  ) -> tf.data.Dataset:
    """Single tokenised examples, drawn anew in each epoch; see `TextTask.dataset`."""
    self.check_split(split)
    check_epochs(epochs)
    task = self.build(vocabulary)
    lines = task.source.get_dataset(split=split, shuffle=False)
    lines = lines if epochs == 1 else lines.repeat(epochs)
    pieces = task.preprocess_postcache(lines, sequence_length=None, seed=seed)
    return pieces.shuffle(self.window, seed=seed) if shuffle else pieces


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blend(TextTask):
  """Streamed tasks drawn from at fixed rates.

  Attributes:
    tasks: the tasks. rates: how often each is drawn, one a task.
  """

  tasks: Sequence[TextTask] = ()
  rates: Sequence[float] = ()

  streams = True

  def __post_init__(self) -> None:
    super().__post_init__()
    fits = self.tasks and len(self.tasks) == len(self.rates)
    if not fits or not all(map(is_rate, self.rates)):
      raise ValueError(
        "`Blend` takes one positive rate for each of at least one task, got "
        f"{len(self.tasks)} tasks and rates {list(self.rates)}."
      )

  @property
  def splits(self) -> tuple[str, ...]:
    """Splits that at least one task has."""
    return tuple(dict.fromkeys(s for task in self.tasks for s in task.splits))

  def dataset(
    self,
    vocabulary: Vocabulary,
    split: str,
    shuffle: bool = False,
    seed: int = 0,
    epochs: int | None = 1,
  ) -> tf.data.Dataset:
    """Examples of the tasks that have the split, in proportion to their rates."""
    self.check_split(split)
    parts, rates = [], []
    for number, (task, rate) in enumerate(zip(self.tasks, self.rates, strict=True)):
      if split not in task.splits:
        continue
      part = task.dataset(vocabulary, split, shuffle, seed + number, epochs)
      parts.append(part.map(lambda e: {k: e[k] for k in ("inputs", "targets")}))
      rates.append(rate)
    weights = [rate / sum(rates) for rate in rates]
    return tf.data.Dataset.sample_from_datasets(parts, weights, seed=seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _TextFiles(_Streamed):
  """What the tasks of this file share.

  Attributes:
    directory: folder of the files.
    train, validation: names of text files, one passage a line, plain or all .gz.
    longest: tokens of a passage's piece, at most; pieces are drawn from
      `shortest` to it.
  """

  directory: str = ""
  train: Sequence[str] = ()
  validation: Sequence[str] = ()
  shortest: int = 16
  longest: int = 128

  @property
  def splits(self) -> tuple[str, ...]:
    return tuple(s for s in ("train", "validation") if getattr(self, s))

  def _source(self, parse: Callable | None = None) -> seqio.DataSource:
    def open_split(split, shuffle_files=False, seed=None):
      del shuffle_files, seed
      lines = _open(self.directory, getattr(self, split))
      return lines if parse is None else parse(lines)

    return seqio.FunctionDataSource(open_split, splits=self.splits)

  def _features(self, vocabulary: Vocabulary) -> dict[str, seqio.Feature]:
    feature = seqio.Feature(vocabulary, add_eos=True)
    return {"inputs": feature, "targets": feature}

  def _task(self, source, preprocessors, vocabulary) -> seqio.Task:
    return seqio.Task(
      self.name,
      source=source,
      output_features=self._features(vocabulary),
      preprocessors=[*preprocessors, seqio.preprocessors.append_eos_after_trim],
    )

  def _pieces(self, vocabulary: Vocabulary) -> list[Callable]:
    """Preprocessors: lines -> {"targets": ids} of random lengths."""

    def to_ids(lines):
      return lines.map(lambda line: vocabulary.encode_tf(line), tf.data.AUTOTUNE)

    @seqio.map_over_dataset(num_seeds=1)
    def cut(ids, seed):
      length = tf.random.stateless_uniform(
        [], seed, self.shortest, self.longest + 1, tf.int32
      )
      whole = tf.shape(ids)[0] // length * length
      rest = ids[whole:]
      pieces = tf.RaggedTensor.from_row_lengths(
        ids, tf.concat([tf.repeat(length, whole // length), [tf.shape(rest)[0]]], 0)
      )
      return pieces

    def spread(pieces):
      flat = pieces.flat_map(
        lambda rows: tf.data.Dataset.from_tensor_slices(rows).map(lambda row: row)
      )
      flat = flat.filter(lambda ids: tf.shape(ids)[0] >= min(self.shortest, 8))
      return flat.map(lambda ids: {"targets": ids})

    return [to_ids, cut, spread]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanCorruption(_TextFiles):
  """Spans of the text are cut out, each leaves a sentinel, the targets restore them.

  Attributes:
    density: share of tokens that are cut out. span: mean length of a span.
  """

  density: float = 0.15
  span: float = 3.0

  def build(self, vocabulary: Vocabulary) -> seqio.Task:
    vocabulary = vocabularies.for_seqio(vocabulary)
    first = vocabularies.first_sentinel(vocabulary)

    @seqio.map_over_dataset(num_seeds=2)
    def corrupt(example, seeds):
      inputs, targets = corrupt_spans(
        example["targets"], seeds, first, self.density, self.span
      )
      return {"inputs": inputs, "targets": targets}

    return self._task(self._source(), [*self._pieces(vocabulary), corrupt], vocabulary)


def corrupt_spans(
  ids: tf.Tensor, seeds: tf.Tensor, first: int, density: float, span: float
) -> tuple[tf.Tensor, tf.Tensor]:
  """(inputs, targets) of span corruption, without end marks.

  Args:
    ids: piece ids [T].
    seeds: two stateless seeds [2 2].
    first: the sentinel of the first span; the k-th span's is `first` - k.
    density: share of tokens that are cut out. span: mean length of a span.
  """
  total = tf.shape(ids)[0]
  noise = tf.cast(tf.round(tf.cast(total, tf.float32) * density), tf.int32)
  noise = tf.clip_by_value(noise, 1, total - 1)
  count = tf.cast(tf.round(tf.cast(noise, tf.float32) / span), tf.int32)
  count = tf.clip_by_value(count, 1, tf.minimum(noise, total - noise))
  cut = _random_parts(noise, count, seeds[0])
  kept = _random_parts(total - noise, count, seeds[1])
  # kept and cut spans alternate, beginning with a kept one
  lengths = tf.reshape(tf.stack([kept, cut], 1), [-1])
  is_cut = tf.repeat(tf.tile([False, True], [count]), lengths)
  starts = tf.concat([[True], is_cut[1:] != is_cut[:-1]], 0)
  number = tf.cumsum(tf.cast(starts, tf.int32)) - 1
  sentinel = first - number // 2
  cut_start, kept_start = starts & is_cut, starts & ~is_cut
  inputs = tf.where(cut_start, sentinel, ids)[cut_start | ~is_cut]
  targets = tf.where(kept_start, sentinel, ids)[kept_start | is_cut]
  return inputs, targets


def _random_parts(total: tf.Tensor, count: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
  """`count` positive lengths that add up to `total`, all divisions equally likely."""
  cuts = tf.random.experimental.stateless_shuffle(tf.range(1, total), seed)
  cuts = tf.sort(cuts[: count - 1])
  edges = tf.concat([[0], cuts, [total]], 0)
  return edges[1:] - edges[:-1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefixLanguageModel(_TextFiles):
  """The text is cut once; the targets go on from where the inputs end.

  Attributes:
    answer: tokens of the targets, at most.
  """

  answer: int = 32

  def build(self, vocabulary: Vocabulary) -> seqio.Task:
    vocabulary = vocabularies.for_seqio(vocabulary)

    @seqio.map_over_dataset(num_seeds=1)
    def divide(example, seed):
      ids = example["targets"]
      total = tf.shape(ids)[0]
      at = tf.random.stateless_uniform([], seed, 1, total, tf.int32)
      at = tf.maximum(at, total - self.answer)
      return {"inputs": ids[:at], "targets": ids[at:]}

    return self._task(self._source(), [*self._pieces(vocabulary), divide], vocabulary)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptedTexts(_TextFiles):
  """Rows of a TSV with a header: the last two columns are inputs and targets.

  Attributes:
    answer: tokens of the targets, at most; `longest` cuts the inputs.
  """

  answer: int = 32

  def build(self, vocabulary: Vocabulary) -> seqio.Task:
    vocabulary = vocabularies.for_seqio(vocabulary)

    def parse(lines):
      # A header would be one harmless row; it is dropped all the same.
      rows = lines.map(lambda line: tf.strings.split(line, "\t"))
      rows = rows.filter(lambda row: ~tf.reduce_all(row[-2:] == ["inputs", "targets"]))
      return rows.map(lambda row: {"inputs": row[-2], "targets": row[-1]})

    @seqio.map_over_dataset
    def to_ids(example):
      return {
        "inputs": vocabulary.encode_tf(example["inputs"])[: self.longest],
        "targets": vocabulary.encode_tf(example["targets"])[: self.answer],
      }

    return self._task(self._source(parse), [to_ids], vocabulary)

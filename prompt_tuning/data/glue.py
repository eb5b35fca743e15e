"""GLUE and SuperGLUE in T5's words, read through TensorFlow Datasets.

Formats are those of Raffel et al., 2020, "Exploring the Limits of Transfer Learning
with a Unified Text-to-Text Transformer", appendix D, under the names that T5 registers:
"glue_sst2_v002", "super_glue_boolq_v102", "super_glue_wsc_v102_simple_eval" ... A name
may leave its version out.

Departures: an evaluation split of ReCoRD has each query once, with all its answers as
`references` (T5 repeats it for each answer and scores it once); "super_glue_wsc" joins
T5's training (true pairs only) and evaluation (all pairs) tasks as splits of one.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from prompt_tuning.data.task import Example, TextTask

# What T5 writes where a benchmark hides its labels.
UNLABELLED = "<unk>"

_NLI3 = ("entailment", "neutral", "contradiction")
_NLI2 = ("entailment", "not_entailment")
_TRUTH = ("False", "True")
_SPLITS = ("train", "validation", "test")
Raw = Mapping[str, Any]


def pairs(raw: Raw, word: str, columns: Sequence[str]) -> str:
  """Joins "word column: text column: text ..."."""
  return " ".join([word, *(f"{column}: {raw[column]}" for column in columns)])


def similarity(raw: Raw) -> str:
  """STS-B's score, rounded to a fifth, such as "3.8"."""
  # In single precision, as T5: it decides scores halfway between two fifths.
  return f"{np.round(np.float32(raw['label']) * np.float32(5)) / 5:.1f}"


def multirc_input(raw: Raw) -> str:
  """MultiRC's question, answer and paragraph, freed of their HTML."""
  text = pairs(raw, "multirc", ("question", "answer", "paragraph"))
  return re.sub(r"</?b>", "", text.replace("<br>", " "))


def record_input(raw: Raw) -> str:
  """ReCoRD's query, entities and passage, its highlights as sentences."""
  passage = re.sub(r"([.?!\"'])\n@highlight\n", r"\1 ", raw["passage"])
  passage = passage.replace("\n@highlight\n", ". ")
  entities = ", ".join(raw["entities"])
  return f"record query: {raw['query']} entities: {entities} passage: {passage}"


def wsc_input(raw: Raw) -> str:
  """Winograd text with the pronoun between asterisks.

  The index counts words between single spaces. A few rows point at the word before the
  pronoun, or at a pronoun with punctuation behind it; both are put right.

  Raises:
    ValueError: if the pronoun stands at neither place.
  """
  words = raw["text"].split(" ")
  at, pronoun = raw["span2_index"], raw["span2_text"]
  if words[at] != pronoun and at + 1 < len(words) and words[at + 1] == pronoun:
    at += 1
  behind = words[at].removeprefix(pronoun)
  if not words[at].startswith(pronoun) or behind[:1].isalnum():
    raise ValueError(
      f"`super_glue_wsc`: word {at} of {raw['text']!r} is {words[at]!r}, not the "
      f"pronoun {pronoun!r}."
    )
  text = " ".join([*words[:at], f"*{pronoun}*", *([behind] if behind else [])])
  rest = " ".join(words[at + 1 :])
  # T5 writes the rows that it puts right by hand without the space at their end.
  text = f"{text} {rest}".rstrip() if behind else f"{text} {rest}"
  return f"wsc: {text}"


def _one(inputs: str, targets: str, **details: Any) -> list[Example]:
  return [{"inputs": inputs, "targets": targets, **details}]


def _record(raw: Raw, split: str) -> list[Example]:
  inputs, answers = record_input(raw), list(raw["answers"])
  if split != "train":
    return _one(inputs, (answers or [UNLABELLED])[0], references=answers)
  return [example for answer in answers for example in _one(inputs, answer)]


def _wsc(raw: Raw, split: str) -> list[Example]:
  if split == "train" and raw["label"] != 1:
    return []
  label = _TRUTH[raw["label"]] if raw["label"] >= 0 else UNLABELLED
  return _one(wsc_input(raw), raw["span1_text"], label=label)


def _stsb(raw: Raw, split: str) -> list[Example]:
  return _one(pairs(raw, "stsb", ("sentence1", "sentence2")), similarity(raw))


def _multirc(raw: Raw, split: str) -> list[Example]:
  group = str(raw["idx"]["question"])
  return _one(multirc_input(raw), _label(raw, _TRUTH), group=group)


def _label(raw: Raw, labels: Sequence[str]) -> str:
  return UNLABELLED if raw["label"] < 0 else labels[raw["label"]]


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """One of GLUE's or SuperGLUE's tasks.

  Attributes:
    columns: what the input shows, in T5's order (alphabetical but for WiC).
    labels: by class number. metrics: T5's.
    word: what T5 begins the input with; the task's own name if empty.
    splits: {split: split of TFDS}; its own names if empty.
    custom: (raw, split) -> examples, for those that are more than named columns.
    rename: {column: what TFDS calls it}.
  """

  columns: Sequence[str] = ()
  labels: Sequence[str] | None = None
  metrics: Sequence[str] = ("accuracy",)
  word: str = ""
  splits: Sequence[str] = _SPLITS
  custom: Callable[[Raw, str], list[Example]] | None = None
  rename: Mapping[str, str] = dataclasses.field(default_factory=dict)


_SENTENCES = ("sentence1", "sentence2")
_PREMISE = ("hypothesis", "premise")
_BOTH = ("matched", "mismatched")
_MNLI = ("train", "validation", *(f"{s}_{b}" for s in _SPLITS[1:] for b in _BOTH))
BENCHMARKS = {
  "glue_cola": Benchmark(("sentence",), ("unacceptable", "acceptable"), ("matthews",)),
  "glue_sst2": Benchmark(("sentence",), ("negative", "positive")),
  "glue_mrpc": Benchmark(
    _SENTENCES, ("not_equivalent", "equivalent"), ("f1_binary", "accuracy")
  ),
  "glue_qqp": Benchmark(
    ("question1", "question2"),
    ("not_duplicate", "duplicate"),
    ("f1_binary", "accuracy"),
  ),
  "glue_stsb": Benchmark(metrics=("pearson", "spearman"), custom=_stsb),
  "glue_mnli": Benchmark(_PREMISE, _NLI3, splits=_MNLI),
  "glue_mnli_matched": Benchmark(_PREMISE, _NLI3, word="mnli", splits=_SPLITS[1:]),
  "glue_mnli_mismatched": Benchmark(_PREMISE, _NLI3, word="mnli", splits=_SPLITS[1:]),
  "glue_qnli": Benchmark(("question", "sentence"), _NLI2),
  "glue_rte": Benchmark(_SENTENCES, _NLI2),
  "glue_wnli": Benchmark(_SENTENCES, _NLI2[::-1]),
  "glue_ax": Benchmark(_PREMISE, _NLI3, (), word="mnli", splits=("test",)),
  "super_glue_boolq": Benchmark(("passage", "question"), _TRUTH),
  "super_glue_cb": Benchmark(
    _PREMISE,
    ("entailment", "contradiction", "neutral"),
    ("f1_macro", "accuracy"),
  ),
  "super_glue_copa": Benchmark(
    ("choice1", "choice2", "premise", "question"), ("choice1", "choice2")
  ),
  "super_glue_multirc": Benchmark(labels=_TRUTH, metrics=("multirc",), custom=_multirc),
  "super_glue_record": Benchmark(metrics=("squad",), custom=_record),
  "super_glue_rte": Benchmark(_PREMISE, _NLI2),
  "super_glue_wic": Benchmark((*_SENTENCES, "word"), _TRUTH),
  "super_glue_wsc": Benchmark(metrics=("wsc",), custom=_wsc),
  "super_glue_axb": Benchmark(
    _PREMISE,
    _NLI2,
    (),
    word="rte",
    splits=("test",),
    rename={"premise": "sentence1", "hypothesis": "sentence2"},
  ),
  "super_glue_axg": Benchmark(_PREMISE, _NLI2, (), word="rte", splits=("test",)),
}

# T5's versions of the tasks.
_VERSIONS = {"glue": "v002", "super_glue": "v102"}


def parse(name: str) -> tuple[str, str]:
  """(key of `BENCHMARKS`, dataset of TFDS) of a task's name.

  Raises:
    ValueError: if T5 has no such task.
  """
  pattern = r"((super_glue|glue)_\w+?)(?:_(v\d+))?(?:_simple_(?:train|eval))?"
  match = re.fullmatch(pattern, name)
  key, collection, version = match.groups() if match else (None, None, None)
  simple = bool(match) and "_simple_" in name
  fits = key in BENCHMARKS and version in (None, _VERSIONS.get(collection))
  if not fits or (simple and key != "super_glue_wsc"):
    raise ValueError(
      f"`Glue.name` is {name!r}; it must be one of {list(BENCHMARKS)}, with or without "
      "its version: _v002 for GLUE, _v102 for SuperGLUE."
    )
  config = key.removeprefix(f"{collection}_")
  config = "wsc.fixed" if config == "wsc" else config
  return key, f"{collection}/{config}"


def carried_version(source: str) -> str:
  """The version of a dataset's configuration that the installed TFDS makes.

  Raises:
    ValueError: if it has no such configuration.
  """
  import tensorflow_datasets as tfds

  collection, config = source.split("/")
  builder = tfds.builder_cls(collection)
  if config not in builder.builder_configs:
    raise ValueError(
      f"The installed tensorflow-datasets {tfds.__version__} has no {source!r}, only "
      f"{sorted(builder.builder_configs)} of {collection!r}. Install a newer one."
    )
  return str(builder.builder_configs[config].version or builder.VERSION)


def examples_of(key: str, raw: Raw, split: str) -> list[Example]:
  """T5's texts of one raw example (plain Python values) of a benchmark."""
  benchmark = BENCHMARKS[key]
  if benchmark.custom is not None:
    return benchmark.custom(raw, split)
  word = benchmark.word or key.removeprefix("super_").removeprefix("glue_")
  named = {name: raw[benchmark.rename.get(name, name)] for name in benchmark.columns}
  return _one(pairs(named, word, benchmark.columns), _label(raw, benchmark.labels))


@dataclasses.dataclass(frozen=True)
class Glue(TextTask):
  """A GLUE or SuperGLUE task.

  Attributes:
    name: T5's, such as "glue_sst2_v002" or "super_glue_boolq".
    data_dir: where TFDS keeps its data; None for its default. It downloads what is not
      there.
    tfds_version: of the data; None for the one that the installed TFDS makes (2.0.0 of
      GLUE and 1.0.2 of SuperGLUE in TFDS 4.9.10). T5 reads GLUE's 1.0.0, of the same
      examples, which lies in older folders.
    labels, metrics: T5's where not given.
  """

  name: str
  data_dir: str | None = None
  tfds_version: str | None = None

  def __post_init__(self) -> None:
    benchmark = BENCHMARKS[parse(self.name)[0]]
    self._set("labels", self.labels or benchmark.labels)
    self._set("metrics", self.metrics or benchmark.metrics)
    super().__post_init__()

  @property
  def splits(self) -> tuple[str, ...]:
    """Those of TFDS; of MNLI "validation" is the matched one."""
    return tuple(BENCHMARKS[parse(self.name)[0]].splits)

  def _read(self, split: str) -> list[Example]:
    key, source = parse(self.name)
    source = f"{source}:{self.tfds_version or carried_version(source)}"
    if key == "glue_mnli" and split == "validation":
      split = "validation_matched"
    return [
      example
      for raw in self._raw(source, split)
      for example in examples_of(key, raw, split)
    ]

  def _raw(self, source: str, split: str) -> Any:
    """Raw examples of TFDS as plain Python values."""
    import seqio

    data = seqio.TfdsDataSource(source, self.data_dir, splits=[split])
    for raw in data.get_dataset(split=split, shuffle=False).as_numpy_iterator():
      yield _plain(raw)


def _plain(value: Any) -> Any:
  """Text, numbers, lists and dicts of what TFDS yields."""
  if isinstance(value, Mapping):
    return {key: _plain(item) for key, item in value.items()}
  value = value.tolist() if hasattr(value, "tolist") else value
  if isinstance(value, list):
    return [_plain(item) for item in value]
  return value.decode("utf-8") if isinstance(value, bytes) else value

"""GLUE and SuperGLUE: T5's strings for hand-made raw examples."""

import numpy as np
import pytest

from prompt_tuning.data import glue

# benchmark -> raw example, T5's input, T5's target.
FORMATS = {
  "glue_cola": (
    {"sentence": "Bo ran.", "label": 1},
    "cola sentence: Bo ran.",
    "acceptable",
  ),
  "glue_sst2": (
    {"sentence": "so dull", "label": 0},
    "sst2 sentence: so dull",
    "negative",
  ),
  "glue_mrpc": (
    {"sentence1": "A.", "sentence2": "B.", "label": 1},
    "mrpc sentence1: A. sentence2: B.",
    "equivalent",
  ),
  "glue_qqp": (
    {"question1": "Why?", "question2": "How?", "label": 0},
    "qqp question1: Why? question2: How?",
    "not_duplicate",
  ),
  "glue_stsb": (
    {"sentence1": "A.", "sentence2": "B.", "label": 3.25},
    "stsb sentence1: A. sentence2: B.",
    "3.2",
  ),
  "glue_mnli": (
    {"premise": "A.", "hypothesis": "B.", "label": 1},
    "mnli hypothesis: B. premise: A.",
    "neutral",
  ),
  "glue_mnli_matched": (
    {"premise": "A.", "hypothesis": "B.", "label": 2},
    "mnli hypothesis: B. premise: A.",
    "contradiction",
  ),
  "glue_mnli_mismatched": (
    {"premise": "A.", "hypothesis": "B.", "label": 0},
    "mnli hypothesis: B. premise: A.",
    "entailment",
  ),
  "glue_qnli": (
    {"question": "Why?", "sentence": "So.", "label": 0},
    "qnli question: Why? sentence: So.",
    "entailment",
  ),
  "glue_rte": (
    {"sentence1": "A.", "sentence2": "B.", "label": 1},
    "rte sentence1: A. sentence2: B.",
    "not_entailment",
  ),
  "glue_wnli": (
    {"sentence1": "A.", "sentence2": "B.", "label": 0},
    "wnli sentence1: A. sentence2: B.",
    "not_entailment",
  ),
  "glue_ax": (
    {"premise": "A.", "hypothesis": "B.", "label": -1},
    "mnli hypothesis: B. premise: A.",
    "<unk>",
  ),
  "super_glue_boolq": (
    {"question": "is it", "passage": "It is.", "label": 1},
    "boolq passage: It is. question: is it",
    "True",
  ),
  "super_glue_cb": (
    {"premise": "A.", "hypothesis": "B.", "label": 1},
    "cb hypothesis: B. premise: A.",
    "contradiction",
  ),
  "super_glue_copa": (
    {
      "premise": "P.",
      "choice1": "A.",
      "choice2": "B.",
      "question": "cause",
      "label": 1,
    },
    "copa choice1: A. choice2: B. premise: P. question: cause",
    "choice2",
  ),
  "super_glue_multirc": (
    {
      "paragraph": "<b>Sent 1: </b>It is.<br>So.",
      "question": "Is it?",
      "answer": "No",
      "idx": {"paragraph": 0, "question": 7, "answer": 2},
      "label": 0,
    },
    "multirc question: Is it? answer: No paragraph: Sent 1: It is. So.",
    "False",
  ),
  "super_glue_record": (
    {
      "passage": 'He said "no"\n@highlight\nAnn left\n@highlight\nBo stayed.',
      "query": "@placeholder left",
      "entities": ["Ann", "Bo"],
      "answers": ["Ann"],
    },
    'record query: @placeholder left entities: Ann, Bo passage: He said "no" Ann left. '
    "Bo stayed.",
    "Ann",
  ),
  "super_glue_rte": (
    {"premise": "A.", "hypothesis": "B.", "label": 0},
    "rte hypothesis: B. premise: A.",
    "entailment",
  ),
  "super_glue_wic": (
    {
      "word": "run",
      "sentence1": "A run.",
      "sentence2": "I run.",
      "start1": 2,
      "label": 0,
    },
    "wic sentence1: A run. sentence2: I run. word: run",
    "False",
  ),
  "super_glue_wsc": (
    {
      "text": "Bob asked Tom if he can lend money.",
      "span1_text": "Tom",
      "span2_text": "he",
      "span2_index": 4,
      "label": 1,
    },
    "wsc: Bob asked Tom if *he* can lend money.",
    "Tom",
  ),
  "super_glue_axb": (
    {"sentence1": "A.", "sentence2": "B.", "label": -1},
    "rte hypothesis: B. premise: A.",
    "<unk>",
  ),
  "super_glue_axg": (
    {"premise": "A.", "hypothesis": "B.", "label": -1},
    "rte hypothesis: B. premise: A.",
    "<unk>",
  ),
}


@pytest.mark.parametrize("key", glue.BENCHMARKS)
def test_formats(key):
  raw, inputs, target = FORMATS[key]
  (example,) = glue.examples_of(key, raw, "validation")
  assert (example["inputs"], example["targets"]) == (inputs, target)


@pytest.mark.parametrize("key", glue.BENCHMARKS)
def test_names_come_with_and_without_version(key):
  version = "_v102" if key.startswith("super") else "_v002"
  task = glue.Glue(name=key)
  assert glue.parse(key) == glue.parse(key + version)
  assert glue.Glue(name=key + version).splits == task.splits
  labels = task.labels
  assert labels is None or FORMATS[key][2] in (*labels, "<unk>")


def test_sources_are_those_of_t5():
  found = glue.parse("glue_mnli_mismatched")
  assert found == ("glue_mnli_mismatched", "glue/mnli_mismatched")
  found = glue.parse("super_glue_wsc_v102_simple_eval")
  assert found == ("super_glue_wsc", "super_glue/wsc.fixed")


# What a builder gives is read by these names beside a benchmark's columns.
ALSO_READ = {
  "glue_stsb": ("sentence1", "sentence2"),
  "super_glue_multirc": ("paragraph", "question", "answer", "idx"),
  "super_glue_record": ("passage", "query", "entities", "answers"),
  "super_glue_wsc": ("text", "span1_text", "span2_text", "span2_index"),
}


class Downloads:
  """Of TFDS: an empty folder for whatever it asks."""

  def __init__(self, folder):
    self.folder = str(folder)

  def download_and_extract(self, urls):
    return dict.fromkeys(urls, self.folder) if isinstance(urls, dict) else self.folder

  download = extract = download_and_extract


@pytest.mark.parametrize("key", glue.BENCHMARKS)
def test_the_installed_tfds_has_what_is_read(key, tmp_path):
  tfds = pytest.importorskip("tensorflow_datasets")
  _, source = glue.parse(key)
  versioned = f"{source}:{glue.carried_version(source)}"
  builder = tfds.builder(versioned, data_dir=str(tmp_path))
  assert f"{builder.name}/{builder.builder_config.name}" == source
  features = builder.info.features
  benchmark = glue.BENCHMARKS[key]
  read = {benchmark.rename.get(name, name) for name in benchmark.columns}
  read |= {*ALSO_READ.get(key, ()), *(() if "record" in key else ("label",))}
  assert read <= set(features)
  if benchmark.labels and hasattr(features["label"], "names"):
    spoken = [name.lower() for name in features["label"].names]
    assert spoken == [label.lower() for label in benchmark.labels]
  if key == "super_glue_multirc":
    assert "question" in features["idx"]
  made = builder._split_generators(Downloads(tmp_path))
  names = set(made) if isinstance(made, dict) else {str(one.name) for one in made}
  assert {split for split in benchmark.splits if (key, split) != _MNLI_ALIAS} <= names


_MNLI_ALIAS = ("glue_mnli", "validation")


def test_a_configuration_that_tfds_lacks_is_named():
  pytest.importorskip("tensorflow_datasets")
  with pytest.raises(ValueError, match="has no 'glue/none', only .*'sst2'"):
    glue.carried_version("glue/none")


def test_reads_a_dataset_that_lies_on_disk(tmp_path):
  tfds = pytest.importorskip("tensorflow_datasets")
  builder = tfds.builder(
    f"glue/sst2:{glue.carried_version('glue/sst2')}", data_dir=str(tmp_path)
  )
  rows = [("so dull", 0), ("a joy", 1), ("fine", 1)]
  (tmp_path / "glue/sst2" / str(builder.version)).mkdir(parents=True)
  writer = tfds.core.SequentialWriter(builder.info, max_examples_per_shard=10)
  writer.initialize_splits(["train", "validation"])
  for split in ("train", "validation"):
    for number, (text, label) in enumerate(rows):
      row = {"sentence": text, "label": label, "idx": number}
      writer.add_examples({split: [builder.info.features.encode_example(row)]})
  writer.close_all()
  task = glue.Glue(name="glue_sst2_v002", data_dir=str(tmp_path))
  assert task.examples("train") == [
    {"inputs": f"sst2 sentence: {text}", "targets": ("negative", "positive")[label]}
    for text, label in rows
  ]
  assert task.score(["negative", "positive", "positive"], "validation") == {
    "accuracy": 100.0
  }


@pytest.mark.parametrize(
  "name",
  ["glue_sst3", "sst2", "glue_sst2_v102", "super_glue_cb_v002", "glue_rte_simple_eval"],
)
def test_unknown_names_are_refused(name):
  with pytest.raises(ValueError, match=f"`Glue.name` is '{name}'.*glue_sst2"):
    glue.Glue(name=name)


def test_metrics_are_those_of_t5():
  expected = {
    "glue_cola": ("matthews",),
    "glue_mrpc": ("f1_binary", "accuracy"),
    "glue_stsb": ("pearson", "spearman"),
    "super_glue_cb": ("f1_macro", "accuracy"),
    "super_glue_multirc": ("multirc",),
    "super_glue_record": ("squad",),
    "super_glue_boolq": ("accuracy",),
  }
  assert {key: glue.Glue(name=key).metrics for key in expected} == expected
  assert glue.Glue(name="glue_rte", metrics=("f1_binary",)).metrics == ("f1_binary",)


@pytest.mark.parametrize(
  ("score", "text"),
  # 2.3 and 2.5 lie halfway in single precision, and go to the even fifth.
  [(0, "0.0"), (1.8, "1.8"), (2.3, "2.4"), (2.5, "2.4"), (3.75, "3.8"), (5, "5.0")],
)
def test_similarity_is_rounded_to_a_fifth(score, text):
  assert glue.similarity({"label": float(np.float32(score))}) == text


@pytest.mark.parametrize(
  ("text", "at", "pronoun", "marked"),
  [
    ("We want to use it , but", 3, "it", "We want to use *it* , but"),
    ('"Good for him," he said. ', 2, "him", '"Good for *him* ," he said.'),
    ("Ann saw  him. ", 3, "him.", "Ann saw  *him.* "),
  ],
)
def test_wsc_finds_the_pronoun(text, at, pronoun, marked):
  raw = {"text": text, "span2_index": at, "span2_text": pronoun}
  assert glue.wsc_input(raw) == f"wsc: {marked}"


def test_wsc_refuses_another_word():
  raw = {"text": "Ann himself left", "span2_index": 1, "span2_text": "him"}
  with pytest.raises(ValueError, match="word 1.*'himself', not the pronoun 'him'"):
    glue.wsc_input(raw)


def test_wsc_trains_on_true_pairs_and_judges_all():
  raw = {**FORMATS["super_glue_wsc"][0], "label": 0}
  assert glue.examples_of("super_glue_wsc", raw, "train") == []
  (example,) = glue.examples_of("super_glue_wsc", raw, "validation")
  assert example["label"] == "False"


def test_record_repeats_queries_in_training_alone():
  raw = {**FORMATS["super_glue_record"][0], "answers": ["Ann", "Bo"]}
  train = glue.examples_of("super_glue_record", raw, "train")
  assert [example["targets"] for example in train] == ["Ann", "Bo"]
  (example,) = glue.examples_of("super_glue_record", raw, "validation")
  assert example["references"] == ["Ann", "Bo"]
  (hidden,) = glue.examples_of("super_glue_record", {**raw, "answers": []}, "test")
  assert hidden["targets"] == "<unk>"


def test_a_split_is_formatted_and_scored(monkeypatch):
  asked = []

  def raw(self, source, split):
    asked.append((source, split))
    first = FORMATS["super_glue_multirc"][0]
    yield first
    yield {**first, "label": 1, "answer": "Yes"}

  monkeypatch.setattr(glue.Glue, "_raw", raw)
  task = glue.Glue(name="super_glue_multirc", tfds_version="9.9.9")
  assert [e["group"] for e in task.examples("validation")] == ["7", "7"]
  scores = task.score(["False", "False"], "validation")
  assert scores == {"f1a": 0.0, "em": 0.0}
  assert task.score(["False", "True"], "validation") == {"f1a": 100.0, "em": 100.0}
  mnli = glue.Glue(name="glue_mnli")
  with pytest.raises(KeyError):
    mnli.examples("validation")
  assert asked == [
    ("super_glue/multirc:9.9.9", "validation"),
    (f"glue/mnli:{glue.carried_version('glue/mnli')}", "validation_matched"),
  ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["glue_sst2_v002", "super_glue_record"])
def test_reads_tfds(name):
  tfds = pytest.importorskip("tensorflow_datasets")
  with tfds.testing.mock_data(num_examples=2):
    examples = glue.Glue(name=name).examples("validation")
  assert len(examples) == 2
  word = "sst2 sentence: " if "sst2" in name else "record query: "
  assert all(e["inputs"].startswith(word) and e["targets"] for e in examples)

"""The files of `gin/tasks/`: each makes its task, on stand-in data and on the real."""

import gzip
import pathlib

import gin
import pytest

from prompt_tuning.data import files, glue, mixtures, registered

ROOT = pathlib.Path(__file__).parents[1]
SHARED = ROOT.parent / "shared/data"
SETS = ("sst2", "mr", "mpqa", "trec", "rte", "ag_news")
FEW = tuple(f"{name}_16shot" for name in SETS)
# Labels as the files of a set spell them, and rows of its splits.
RAW = {
  "trec": ("DESC", "ENTY", "ABBR", "HUM", "LOC", "NUM"),
  "rte": ("entailment", "not_entailment"),
  "ag_news": ("World", "Sports", "Business", "Sci/Tech"),
}
SIZES = {
  "sst2": (67349, 872, 1821),
  "mr": (7795, 867, 2000),
  "mpqa": (7745, 861, 2000),
  "trec": (4952, 500, 500),
  "rte": (2490, 277, None),
  "ag_news": (8570, 1000, 7600),
}


@gin.configurable
def probe_task(task=None, labels=None):
  """What a recipe gets of a task's file."""
  return task, labels


def made(name, *bindings):
  """TASK and LABELS of a file after some bindings."""
  gin.clear_config()
  gin.add_config_file_search_path(str(ROOT))
  gin.parse_config([f"include 'gin/tasks/{name}.gin'", *bindings])
  gin.parse_config(["probe_task.task = %TASK", "probe_task.labels = %LABELS"])
  try:
    return probe_task()
  finally:
    gin.clear_config()


def save(path, columns, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  lines = ["\t".join(columns), *("\t".join(map(str, row)) for row in rows)]
  path.write_bytes(gzip.compress("\n".join(lines).encode()))


@pytest.fixture
def data_dir(tmp_path):
  """Every set in small: 20 rows a label, and few-shot rows of two seeds."""
  for name in SETS:
    raw = RAW.get(name, ("negative", "positive"))
    texts = ("sentence1", "sentence2") if name == "rte" else ("text",)
    rows = [(*(f"{t} {i}" for t in texts), x) for i in range(20) for x in raw]
    for split in ("train", "validation", "test"):
      save(tmp_path / name / f"{split}.tsv.gz", (*texts, "label"), rows)
    few = [
      (seed, split, *row)
      for seed in (13, 21)
      for split in ("train", "validation")
      for row in rows[: 16 * len(raw)]
    ]
    path = tmp_path / "fewshot16" / f"{name}.tsv.gz"
    save(path, ("seed", "split", *texts, "label"), few)
  return str(tmp_path)


@pytest.mark.parametrize("name", SETS)
def test_a_set(name, data_dir):
  task, labels = made(name, f"DATA_DIR = '{data_dir}'")
  assert isinstance(task, files.Files) and task.name == name
  assert task.labels == labels and task.metrics == ("accuracy",)
  for split in task.splits:
    targets = [example["targets"] for example in task.examples(split)]
    assert set(targets) == set(labels) and len(targets) == 20 * len(labels)
  assert task.splits == ("train", "validation", "test")[: 2 if name == "rte" else 3]


@pytest.mark.parametrize("name", FEW)
def test_sixteen_shots(name, data_dir):
  task, labels = made(name, f"DATA_DIR = '{data_dir}'", "SHOT_SEED = 21")
  assert task.name == name and task.labels == labels and "test" in task.splits
  targets = [example["targets"] for example in task.examples("train")]
  assert {label: targets.count(label) for label in labels} == dict.fromkeys(labels, 16)
  assert len(task.examples("test")) == 20 * len(labels)
  with pytest.raises(TypeError, match="in scope 'SHOT_SEED'"):
    made(name, f"DATA_DIR = '{data_dir}'")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data are not here")
@pytest.mark.parametrize("name", SETS)
def test_the_real_sets(name):
  task, labels = made(name, f"DATA_DIR = '{SHARED}'")
  sizes = dict(zip(("train", "validation", "test"), SIZES[name], strict=True))
  for split in task.splits:
    examples = task.examples(split)
    assert len(examples) == sizes[split]
    assert {example["targets"] for example in examples} <= set(labels)
  seeds = (13, 21, 42, 87, 100)
  for seed in seeds if name != "ag_news" else seeds[:1]:
    few, _ = made(f"{name}_16shot", f"DATA_DIR = '{SHARED}'", f"SHOT_SEED = {seed}")
    targets = [example["targets"] for example in few.examples("train")]
    assert sorted(targets) == sorted(16 * list(labels))
    if name != "ag_news":
      assert len(few.examples("validation")) == 16 * len(labels)
  if name in ("rte", "sst2"):
    assert few.examples("test") == task.examples("validation")


def test_any_files(tmp_path):
  path = tmp_path / "q.jsonl"
  path.write_text('{"q": "is it", "p": "It is.", "label": 1}\n')
  task, labels = made(
    "files",
    f"TRAIN_FILE = '{path}'",
    "VALIDATION_FILE = None",
    "INPUTS = 'question: {q} passage: {p}'",
    "LABEL_MAP = {0: 'no', 1: 'yes'}",
    "LABELS = ('no', 'yes')",
  )
  assert task.splits == ("train",) and labels == ("no", "yes")
  assert task.examples("train") == [
    {"inputs": "question: is it passage: It is.", "targets": "yes"}
  ]
  quoted = tmp_path / "q.tsv"
  quoted.write_text('q\tlabel\n"a ""b"""\tyes\n')
  flags = ["VALIDATION_FILE = None", "INPUTS = '{q}'", "QUOTED = True"]
  task, _ = made("files", f"TRAIN_FILE = '{quoted}'", *flags)
  assert task.examples("train") == [{"inputs": 'a "b"', "targets": "yes"}]
  with pytest.raises(TypeError, match="in scope 'TRAIN_FILE'"):
    made("files", "VALIDATION_FILE = 'a.tsv'")


def test_glue_by_name():
  task, labels = made("glue", "GLUE_NAME = 'super_glue_boolq_v102'")
  assert isinstance(task, glue.Glue) and labels is None
  assert task.labels == ("False", "True") and task.metrics == ("accuracy",)


def test_registered_by_name():
  names = ("MIXTURE_OR_TASK_NAME = 'a'", "MIXTURE_OR_TASK_MODULE = 'b.c'")
  task, labels = made("registered", *names)
  assert isinstance(task, registered.Registered) and labels is None
  assert (task.name, task.module, task.metrics) == ("a", "b.c", ())


def test_sets_go_into_one_mixture(data_dir):
  task, _ = made(
    "sst2",
    "from __gin__ import dynamic_registration",
    "from prompt_tuning.data import files",
    "from prompt_tuning.data import mixtures",
    "include 'gin/tasks/rte.gin'",
    f"DATA_DIR = '{data_dir}'",
    "TASK = @mixtures.Mixture()",
    "mixtures.Mixture.tasks = [@sst2/files.Files(), @rte/files.Files()]",
    "mixtures.Mixture.rates = 'equal'",
  )
  assert isinstance(task, mixtures.Mixture)
  assert [own.name for own in task.tasks] == ["sst2", "rte"]
  assert task.weights() == (0.5, 0.5) and task.labels is None


def test_a_mixture_from_gin_alone(data_dir):
  lines = [
    "from __gin__ import dynamic_registration",
    "from prompt_tuning.data import files",
    "from prompt_tuning.data import rates",
    "include 'gin/tasks/rte.gin'",
    "include 'gin/tasks/mixture.gin'",
    f"DATA_DIR = '{data_dir}'",
    "MEMBERS = [@sst2/files.Files(), @rte/files.Files()]",
  ]
  task, labels = made("sst2", *lines, "RATES = (1, 3)", "TASK_NAME = 'two'")
  assert task.name == "two" and task.weights() == (0.25, 0.75)
  assert [own.labels for own in task.tasks] == [("negative", "positive"), ("no", "yes")]
  assert task.labels is None and labels is None
  drawn = ["RATES = @rates.TaskSubset()", "SUBSET_LEAST = 1", "RATE_CAP = 30"]
  task, _ = made("sst2", *lines, *drawn)
  assert task.by_batch and task.rates.least == 1 and task.cap == 30
  roots = ["RATES = @rates.Temperature()", "RATE_TEMPERATURE = 3"]
  task, _ = made("sst2", *lines, *roots)
  assert task.rates.temperature == 3


def test_both_embedded_tasks_keep_their_labels():
  task, _ = made("demo_both")
  sizes = [len(own.labels) for own in task.tasks]
  assert [own.name for own in task.tasks] == ["demo_sentiment", "demo_topic"]
  assert sizes == [2, 4] and task.labels is None
  numbers = [example["task"] for example in task.examples("validation")]
  assert numbers == [0] * 160 + [1] * 160


@pytest.mark.parametrize(
  "path", sorted((ROOT / "gin/tasks").glob("*.gin")), ids=lambda path: path.stem
)
def test_each_file_says_what_it_provides(path):
  comment = [line for line in path.read_text().splitlines() if line.startswith("#")]
  assert "Provides TASK" in " ".join(comment)

"""Tasks and vectors of examples, from the data to the answer and into programs."""

import json
import shutil

import numpy as np
import pytest

import prompt_tuning as pt
from prompt_tuning import eval as eval_verb
from prompt_tuning import export, infer, train
from prompt_tuning.data.given import Wants
from prompt_tuning.engine import config, product
from prompt_tuning.interop import serving

NUMBERS = """TASK_FEATURE_LENGTHS = {"inputs": 16, "targets": 4}
PROMPT_LENGTH = 3
BATCH_SIZE = 8
EVAL_BATCH_SIZE = 8
TRAIN_STEPS = 4
LOG_PERIOD = 2
LEARNING_RATE = 0.5
TENSORBOARD = False
"""
VECTORS = """include "gin/train.gin"
include "gin/tasks/files.gin"
include "gin/methods/s_idpg_phm_external.gin"
include "gin/outputs/choice.gin"
INPUTS = "review: {text}"
LABELS = ("negative", "positive")
CODE_WIDTH = 4
PHM_ORDER = 2
GENERATOR_WIDTH = 8
"""
TASKS = """from __gin__ import dynamic_registration
from prompt_tuning.data import files
from prompt_tuning.data import rates
include "gin/train.gin"
include "gin/tasks/mixture.gin"
include "gin/methods/task_prompts.gin"
include "gin/outputs/choice.gin"
TASKS = 2
MEMBERS = [@mood/files.Files(), @place/files.Files()]
RATES = @rates.TaskSubset()
BEST_METRIC = "mean"
files.Files:
  directory = %FOLDER
  train = "train.jsonl"
  validation = "validation.jsonl"
mood/files.Files:
  name = "mood"
  labels = ("negative", "positive")
place/files.Files:
  name = "place"
  targets = "{place}"
  labels = ("home", "abroad", "nowhere")
"""


def rows_of(split, count):
  draw = np.random.default_rng(len(split))
  return [
    {
      "text": f"a {draw.choice(['good', 'dull', 'fine'])} film number {i}",
      "label": ("negative", "positive")[i % 2],
      "place": ("home", "abroad", "nowhere")[i % 3],
      "vector": [round(float(x), 3) for x in draw.normal(size=4)],
      "asks": ("mood", "1")[i % 2],
    }
    for i in range(count)
  ]


@pytest.fixture(scope="module")
def work(tmp_path_factory, tiny_folder):
  """Rows as JSONL, TSV and arrays, and both recipes."""
  folder = tmp_path_factory.mktemp("given")
  for split, count in (("train", 24), ("validation", 9)):
    rows = rows_of(split, count)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{split}.jsonl").write_text(text)
    lines = ["\t".join(rows[0])]
    lines += ["\t".join(map(str, row.values())) for row in rows]
    (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    vectors = np.array([row["vector"] for row in rows], np.float32)
    np.save(folder / f"vectors-{split}.npy", vectors)
  for name, recipe in (("vectors", VECTORS), ("tasks", TASKS)):
    paths = [f"INITIAL_CHECKPOINT_PATH = '{tiny_folder}'"]
    if name == "vectors":
      paths += [f"DATA_DIR = '{folder}'", "TRAIN_FILE = 'train.jsonl'"]
      paths += ["VALIDATION_FILE = 'validation.jsonl'"]
    else:
      paths += [f"FOLDER = '{folder}'"]
    text = f"{recipe}{NUMBERS}" + "\n".join(paths) + "\n"
    (folder / f"{name}.gin").write_text(text)
  return folder


def trained(work, recipe, name, *flags):
  flags = [f"--gin.{flag}" for flag in (f"MODEL_DIR='{work}/{name}'", *flags)]
  config.run_verb(train.train, [f"--gin_file={work}/{recipe}.gin", *flags])
  return work / name / "prompt"


def answered(prompt, name, file, *flags):
  """Records of `infer`."""
  out = prompt.parent / f"{name}.jsonl"
  given = [f"PROMPT_DIR='{prompt}'", f"INPUT_FILE='{file}'", f"OUTPUT_FILE='{out}'"]
  flags = [f"--gin.{flag}" for flag in (*given, *flags)]
  config.run_verb(infer.infer, ["--gin_file=gin/infer.gin", *flags])
  return [json.loads(line) for line in out.read_text().splitlines()]


def scores_of(records, labels):
  return np.array([[one["scores"][label] for label in labels] for one in records])


@pytest.fixture(scope="module")
def by_vectors(work, cache):
  return trained(work, "vectors", "by_column", "EXTERNAL_COLUMN='vector'")


@pytest.fixture(scope="module")
def by_tasks(work, cache):
  return trained(work, "tasks", "by_task")


# --- vectors


def test_vectors_of_a_column_and_of_an_array_train_alike(work, by_vectors):
  again = trained(work, "vectors", "by_file", "EXTERNAL_FILE='vectors-{split}.npy'")
  for path in (again, by_vectors):
    assert (path / "prompt.safetensors").is_file()
  one, other = (product.load(path).trainable for path in (again, by_vectors))
  np.testing.assert_equal(one, other)
  table = trained(
    *(work, "vectors", "by_table", "EXTERNAL_COLUMN='vector'"),
    "TRAIN_FILE='train.tsv'",
    "VALIDATION_FILE='validation.tsv'",
  )
  np.testing.assert_equal(product.load(table).trainable, one)


def test_vectors_go_from_the_file_to_the_answer(work, by_vectors, tiny_folder):
  file, labels = work / "validation.jsonl", ["negative", "positive"]
  found = answered(by_vectors, "column", file)
  array = f"EXTERNAL_FILE='{work}/vectors-validation.npy'"
  assert answered(by_vectors, "array", work / "validation.tsv", array) == found
  lines = work / "lines.txt"
  rows = rows_of("validation", 9)
  lines.write_text("".join(f"{row['text']}\n" for row in rows))
  assert answered(by_vectors, "lines", lines, array) == found
  texts = [row["text"] for row in rows]
  vectors = np.array([row["vector"] for row in rows])
  model, prompt = pt.load_model(tiny_folder), pt.load_prompt(str(by_vectors))
  mine = pt.classify(model, prompt, texts, external=vectors)[1]
  np.testing.assert_allclose(mine, scores_of(found, labels), atol=1e-5)
  others = pt.classify(model, prompt, texts, external=vectors[::-1])[1]
  assert np.abs(others - mine)[:4].max(1).min() > 1e-4
  pairs = [(text, "positive") for text in texts]
  right = pt.score(model, prompt, pairs, external=vectors)
  np.testing.assert_allclose(right, mine[:, 1], atol=1e-4)
  out = work / "program"
  flags = [f"--prompt={by_vectors}", f"--output={out}", "--platforms=cpu"]
  export.main(["--to=stablehlo", "--steps=3", *flags])
  served = serving.load(out)
  assert served.card["arguments"]["external"]["shape"] == ["b", 4]
  assert "task" not in served.card["arguments"]
  given = served.classify(texts, external=vectors.astype(np.float32))[1]
  np.testing.assert_allclose(given, mine, atol=1e-4)
  words = pt.predict(model, prompt, texts, 3, external=vectors)
  assert served.predict(texts, external=vectors.astype(np.float32)) == words


# --- tasks


def test_each_task_is_scored_and_the_card_names_them(work, by_tasks):
  lines = (work / "by_task" / "metrics.jsonl").read_text().splitlines()
  last = json.loads(lines[-1])
  names = {"mean", "mood/accuracy", "place/accuracy", "mood/loss", "place/loss"}
  assert names <= set(last)
  assert last["mean"] == (last["mood/accuracy"] + last["place/accuracy"]) / 2
  card = product.load(by_tasks).card
  assert card["task"]["tasks"] == [
    {"name": "mood", "labels": ["negative", "positive"]},
    {"name": "place", "labels": ["home", "abroad", "nowhere"]},
  ]
  assert card["reading"]["inputs"] == "{text}"


def test_a_run_over_subsets_of_tasks_goes_on_as_an_unbroken_one(work, cache):
  whole = trained(work, "tasks", "whole", "SAVE_PERIOD=2", "TRAIN_STEPS=6")
  part = work / "part"
  shutil.copytree(work / "whole", part)
  for path in ("prompt", "checkpoints/6", "checkpoints/best"):
    shutil.rmtree(part / path)
  assert [path.name for path in (part / "checkpoints").iterdir()] == ["4"]
  again = trained(work, "tasks", "part", "SAVE_PERIOD=2", "TRAIN_STEPS=6")
  one, other = (product.load(path).trainable for path in (again, whole))
  np.testing.assert_equal(one, other)


def test_tasks_go_from_the_file_to_the_answer(work, by_tasks, tiny_folder):
  rows = rows_of("validation", 9)
  found = answered(*(by_tasks, "mixed", work / "validation.tsv"), "TASK_COLUMN='asks'")
  texts = [row["text"] for row in rows]
  model, prompt = pt.load_model(tiny_folder), pt.load_prompt(str(by_tasks))
  each = {}
  for name, labels in (("mood", 2), ("place", 3)):
    answers, scores = pt.classify(model, prompt, texts, task=name)
    assert scores.shape == (9, labels)
    each[name] = answers, scores
    alone = answered(
      *(by_tasks, name, work / "validation.jsonl"), f"PROMPT_TASK='{name}'"
    )
    assert [one["prediction"] for one in alone] == answers
  for i, one in enumerate(found):
    answers, scores = each[("mood", "place")[i % 2]]
    assert one["prediction"] == answers[i] and one["input"] == texts[i]
    np.testing.assert_allclose(list(one["scores"].values()), scores[i], atol=1e-5)
  both = ["negative", "abroad"]
  mixed = pt.classify(model, prompt, texts, both, task=[i % 2 for i in range(9)])[1]
  for i in range(9):
    alone = pt.classify(model, prompt, [texts[i]], both, task=i % 2)[1]
    np.testing.assert_allclose(mixed[i], alone[0], atol=1e-5)
  out = work / "tasks_program"
  flags = [f"--prompt={by_tasks}", f"--output={out}", "--platforms=cpu", "--steps=3"]
  export.main(["--to=stablehlo", *flags, "--labels", *both])
  served = serving.load(out)
  assert served.card["arguments"]["task"] == {"dtype": "int32", "shape": ["b"]}
  assert served.card["reads"]["names"] == ["mood", "place"]
  names = ["mood" if i % 2 == 0 else "place" for i in range(9)]
  for task in (names, [i % 2 for i in range(9)]):
    given = served.classify(texts, task=task)[1]
    np.testing.assert_allclose(given, mixed, atol=1e-4)
  words = pt.predict(model, prompt, texts, 3, task=names)
  assert served.predict(texts, task=names) == words
  for wrong, message in (
    ({}, "`task` is missing: the prompt tells 2 tasks apart"),
    ({"task": "film"}, r"a number from 0 to 1, or one of \['mood', 'place'\]"),
    ({"task": [0] * 8}, "names 8 tasks for 9 texts"),
  ):
    with pytest.raises(ValueError, match=message):
      served.classify(texts, **wrong)
  ids = np.ones((1, 4), np.int32)
  with pytest.raises(ValueError, match="`task` must be numbers from 0 to 1, got 2"):
    served.run("choose", inputs=ids, task=np.array([2], np.int32))


def test_a_member_is_evaluated_by_its_name(work, by_tasks, tiny_folder):
  """The whole mixture, then one of it alone: the same scores."""
  found = {}
  for name, flags in {
    "both": ["TASK=@mixtures.Mixture()"],
    "place": ["TASK=@place/files.Files()"],
    "other": ["TASK=@place/files.Files()", "PROMPT_TASK=0"],
  }.items():
    # The recipe's own verb is another one, so the task is said anew.
    text = (work / "tasks.gin").read_text()
    keep = text[: text.index("include")] + 'include "gin/eval.gin"\n'
    keep += 'include "gin/tasks/mixture.gin"\n' + text[text.index("MEMBERS") :]
    keep = keep[: keep.index("TASK_FEATURE")] + text[text.index("FOLDER =") :]
    (work / "eval.gin").write_text(keep.replace('BEST_METRIC = "mean"\n', ""))
    given = [f"PROMPT_DIR='{by_tasks}'", f"EVAL_DIR='{work}/eval-{name}'", *flags]
    flags = [f"--gin.{flag}" for flag in given]
    config.run_verb(eval_verb.evaluate_prompt, [f"--gin_file={work}/eval.gin", *flags])
    path = work / f"eval-{name}" / "metrics-validation.json"
    found[name] = json.loads(path.read_text())
  assert found["place"]["accuracy"] == found["both"]["place/accuracy"]
  assert found["place"]["loss"] == pytest.approx(found["both"]["place/loss"], abs=1e-5)
  assert found["other"]["loss"] != pytest.approx(found["place"]["loss"], abs=1e-5)


# --- what does not fit


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    ([], "EXTERNAL_COLUMN"),
    (["EXTERNAL_COLUMN='place'"], "holds 'home'; it must be a list of finite numbers"),
    (["EXTERNAL_COLUMN='none'"], "asks for the column 'none'"),
    (["EXTERNAL_FILE='vectors-train.npy'"], "Write '{split}' where their names differ"),
    (["EXTERNAL_FILE='none-{split}.npy'"], "cannot be read: there is no such file"),
    (
      ["EXTERNAL_COLUMN='vector'", "EXTERNAL_FILE='v-{split}.npy'"],
      "vectors come from one of them",
    ),
    (["EXTERNAL_COLUMN='vector'", "CODE_WIDTH=6"], "the prompt reads width 6"),
    (
      ["EXTERNAL_FILE='vectors-{split}.npy'", "TRAIN_FILE='validation.jsonl'"],
      "of 24 rows, but the file beside it has 9",
    ),
  ],
)
def test_training_without_vectors_that_fit(work, flags, words, capsys):
  with pytest.raises(SystemExit) as error:
    trained(work, "vectors", "refused", *flags)
  line = capsys.readouterr().err.strip() + str(error.value)
  assert words in line


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    (["TASKS=1"], "belongs to task 1, but the prompt knows the tasks 0 to 0 (TASKS)"),
    (["TASK=@mood/files.Files()"], "tells 2 tasks apart, but example 0 of the split"),
    (["PACK_SEGMENTS=2"], "the tasks of each batch are drawn for it"),
    (["SUBSET_LEAST=3"], "`TaskSubset` draws 3 to 2 of 2 tasks"),
    (["RATES=(1, 0)"], "a number above 0 for each task"),
    (["BEST_METRIC='accuracy'"], "'mood/accuracy'"),
  ],
)
def test_training_without_tasks_that_fit(work, flags, words, capsys):
  with pytest.raises(SystemExit) as error:
    trained(work, "tasks", "refused", *flags)
  line = capsys.readouterr().err.strip() + str(error.value)
  assert words in line


@pytest.mark.parametrize(
  ("recipe", "file", "flags", "words"),
  [
    ("tasks", "tsv", [], "`PROMPT_TASK` is None, but the prompt tells 2 tasks apart"),
    ("tasks", "tsv", ["PROMPT_TASK=2"], "a number from 0 to 1, or one of"),
    ("tasks", "tsv", ["PROMPT_TASK=0", "TASK_COLUMN='asks'"], "give the task of all"),
    ("tasks", "tsv", ["TASK_COLUMN='text'"], "validation.tsv line 2: `TASK_COLUMN`"),
    ("tasks", "tsv", ["PROMPT_TASK=0", "EXTERNAL_COLUMN='x'"], "reads no vectors"),
    ("vectors", "tsv", ["EXTERNAL_COLUMN='text'"], "list of finite numbers"),
    ("vectors", "tsv", ["TASK_COLUMN='asks'"], "tells no tasks apart"),
    ("vectors", "tsv", ["EXTERNAL_FILE='vectors-train.npy'"], "has 9"),
    ("vectors", "tsv", ["EXTERNAL_FILE='wide.npy'"], "of width 5"),
    ("vectors", "tsv", ["EXTERNAL_FILE='odd.npy'"], "row 3 holds a number that is not"),
    ("vectors", "tsv", ["EXTERNAL_FILE='text.npy'"], "cannot be read"),
    ("vectors", "txt", [], "holds plain lines"),
  ],
)
def test_answers_without_what_the_prompt_wants(
  work, by_tasks, by_vectors, recipe, file, flags, words, capsys, monkeypatch
):
  monkeypatch.chdir(work)
  np.save("wide.npy", np.zeros((9, 5), np.float32))
  odd = np.zeros((9, 4), np.float32)
  odd[3, 2] = np.nan
  np.save("odd.npy", odd)
  (work / "text.npy").write_text("no array")
  (work / "validation.txt").write_text("a film\n")
  prompt = by_tasks if recipe == "tasks" else by_vectors
  with pytest.raises(SystemExit) as error:
    answered(prompt, "refused", work / f"validation.{file}", *flags)
  assert words in capsys.readouterr().err + str(error.value)


def test_what_calls_bring():
  many = Wants(tasks=3, names=("a", "b", "c"))
  assert [int(x["task"]) for x in many.beside(2, "b")] == [1, 1]
  assert [int(x["task"]) for x in many.beside(3, ["c", 0, "1"])] == [2, 0, 1]
  assert [int(x["task"]) for x in many.beside(2, np.array([2, 1]))] == [2, 1]
  assert [int(x["task"]) for x in many.beside(1, np.int64(2))] == [2]
  assert Wants().beside(2) == [{}, {}] and Wants(width=2).beside(0, None, []) == []
  for wanted, given, words in (
    (many, {"task": True}, "`task` is True"),
    (many, {"task": -1}, "`task` is -1; it must be a number from 0 to 2"),
    (many, {"task": [0, 3]}, r"`task\[1\]` is 3"),
    (Wants(), {"task": 0}, "tells no tasks apart. Leave it out"),
    (Wants(), {"external": [[1.0]]}, "reads no vectors. Leave it out"),
    (Wants(width=3), {}, "`external` is missing: the prompt reads a vector of width 3"),
    (Wants(width=3), {"external": [[1.0] * 3]}, r"each of the 2 texts, got shape \[1,"),
    (Wants(width=1), {"external": [[1.0], [np.inf]]}, "not finite"),
    (Wants(width=1), {"external": [["x"], ["y"]]}, "must be numbers"),
  ):
    with pytest.raises(ValueError, match=words):
      wanted.beside(2, **given)

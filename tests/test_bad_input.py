"""Bad input ends in one clear line, before any step is compiled or file written."""

import errno
import json
import os
import pathlib
import shutil

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from prompt_tuning import answer, infer, train
from prompt_tuning import eval as eval_verb
from prompt_tuning.core.prompt import LONGEST, Prompt
from prompt_tuning.data import reading
from prompt_tuning.engine import config, fit, product
from prompt_tuning.inits import uniform
from prompt_tuning.interop.load import load
from prompt_tuning.parameterisers.dense import Dense

RECIPE = """include "gin/train.gin"
include "gin/tasks/files.gin"
include "gin/methods/prompt_tuning.gin"
INPUTS = "{text}"
LABELS = ("negative", "positive")
TASK_FEATURE_LENGTHS = {"inputs": 16, "targets": 4}
PROMPT_LENGTH = 4
BATCH_SIZE = 4
EVAL_BATCH_SIZE = 4
TRAIN_STEPS = 2
TENSORBOARD = False
"""
ROWS = "text\tlabel\na good film\tpositive\na bad film\tnegative\n"


@pytest.fixture
def run(tmp_path, tiny_folder, capsys, monkeypatch):
  """Runs a verb on a good recipe and the given flags; returns its line of error."""

  def nothing(*args, **kwargs):
    pytest.fail("this should have been refused before it ran")

  monkeypatch.setattr(fit, "run", nothing)
  (tmp_path / "data.tsv").write_text(ROWS)
  (tmp_path / "recipe.gin").write_text(
    f"{RECIPE}MODEL_DIR = '{tmp_path}/run'\nTRAIN_FILE = '{tmp_path}/data.tsv'\n"
    f"VALIDATION_FILE = '{tmp_path}/data.tsv'\n"
    f"INITIAL_CHECKPOINT_PATH = '{tiny_folder}'\n"
  )

  def error_of(*flags, verb=train.train, files=()):
    files = [str(tmp_path / "recipe.gin"), *files]
    argv = [*(f"--gin_file={name}" for name in files), *flags]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stop:
      config.run_verb(verb, argv)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert sorted(tmp_path.rglob("*")) == before, "something was written"
    return line

  return error_of


def table(tmp_path, content, name="other.tsv"):
  data = content if isinstance(content, bytes) else content.encode()
  (tmp_path / name).write_bytes(data)
  return f"--gin.TRAIN_FILE='{tmp_path / name}'"


# ---- configuration


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    (["LERNING_RATE=1"], ["'LERNING_RATE'", "'LEARNING_RATE'"]),
    (["TASK=%NO_TASK"], ["must be set: NO_TASK"]),
    (["PROMPT_LENGTH=0"], ["PROMPT_LENGTH", "reserved", f"from 1 to {LONGEST}", "0"]),
    ([f"PROMPT_LENGTH={LONGEST + 1}"], ["PROMPT_LENGTH", f"is {LONGEST + 1}"]),
    (["PROMPT_LENGTH=2.5"], ["PROMPT_LENGTH", "whole number", "2.5"]),
    (["TASK_FEATURE_LENGTHS={'inputs': 9}"], ["TASK_FEATURE_LENGTHS", "two whole"]),
    (["PROMPT_PLACE='middle'"], ["PROMPT_PLACE", "'middle'", "'front'"]),
    (["BATCH_SIZE=0"], ["`BATCH_SIZE` is 0"]),
    (["MICROBATCHES=3"], ["`BATCH_SIZE` is 4", "multiple of 3"]),
    (["TRAINABLE=('prompt/x',)"], ["TRAINABLE", "'prompt/x'", "holds no parameter"]),
    (["TRAINABLE=()"], ["TRAINABLE", "empty", "TRAIN_STEPS = 0"]),
    (["BRANCH_SCHEDULES={'prompt/x': %SCHEDULE}"], ["'prompt/x'"]),
    (["BEST_METRIC='accuracy'"], ["`BEST_METRIC` is 'accuracy'", "gin/outputs/"]),
    (["TRAIN_STEPS=-1"], ["`TRAIN_STEPS` is -1", "from 0", "1000"]),
    (["LABEL_SMOOTHING=1.0"], ["`LABEL_SMOOTHING` is 1.0", "from 0 below 1"]),
    (["INPUTS='review'"], ["`INPUTS` is 'review'", "names no column", "{text}"]),
    (["TARGETS='positive'"], ["`TARGETS` is 'positive'", "names no column"]),
    (["METRICS=('acuracy',)"], ["'acuracy'", "'accuracy'"]),
  ],
)
def test_configurations(run, flags, words):
  line = run(*(f"--gin.{flag}" for flag in flags))
  assert all(word in line for word in words), line


@pytest.mark.parametrize(
  ("flags", "files", "words"),
  [
    (["PACK_SEGMENTS=2"], ["gin/objectives/tfew.gin"], "`PACK_SEGMENTS` is above 1"),
    (["PACK_SEGMENTS=2"], ["gin/objectives/two_level.gin"], "is TwoLevel, whose"),
    (["EPISODES=3"], ["gin/objectives/two_level.gin"], "`EPISODES` is 3, but a part"),
    (["OBJECTIVE=%SCHEDULE"], [], "`OBJECTIVE` is "),
  ],
)
def test_objectives_that_cannot_read_a_row(run, flags, files, words):
  line = run(*(f"--gin.{flag}" for flag in flags), files=files)
  assert words in line, line


def test_a_teacher_that_nobody_asks(run, tmp_path, tiny_folder):
  loaded = load(str(tiny_folder))
  card = {"method": "m", "backbone": {"width": loaded.backbone.spec.width}}
  card["backbone"]["fingerprint"] = loaded.fingerprint
  module = Prompt(4, Dense(uniform.symmetric(0.5)), "encoder.input")
  table = {"parameterise": {"prompt": np.zeros((1, 4, loaded.backbone.spec.width))}}
  product.Product(module, {"prompt": table}, card).save(tmp_path / "teacher")
  line = run(f"--gin.TEACHERS={{'source': '{tmp_path}/teacher'}}")
  assert "`TEACHERS` names 'source', but OBJECTIVE learns from []" in line


def test_choice_without_labels(run):
  flags = ["--gin.LABELS=None"]
  line = run(*flags, files=["gin/outputs/choice.gin"])
  assert "`OUTPUT` is a choice among labels" in line


# ---- data


@pytest.mark.parametrize(
  ("content", "words"),
  [
    ("txt\tlabel\nx\tpositive\n", ["line 2", "`INPUTS`", "'text'", "'txt'"]),
    ("text\tlabel\n", ["`TRAIN_FILE`", "holds no rows"]),
    ("text\tlabel\nx\tneutral\n", ["line 2", "'neutral'", "`LABELS`"]),
    (b"text\tlabel\nx\tpositive\n\xe9\tpositive\n", ["line 3", "not UTF-8", "0xe9"]),
    ("text\tlabel\nx\t\n", ["line 2", "target is empty"]),
    ("text\tlabel\nx\0\tpositive\n", ["line 2", "NUL"]),
    ('"text"\t"label"\n"x"\t"positive"\n', ["line 1", "in quotes", "QUOTED"]),
    ("text\tlabel\rx\tpositive\r", ["line 1", "carriage return"]),
    ("", ["other.tsv is empty"]),
    (
      "text\tlabel\n"
      + "one two three four five six seven eight nine ten\tpositive\n" * 3,
      ["3 of 3", "split 'train'", "inputs longer than the 8", "longest: ", "TRUNCATE"],
    ),
  ],
)
def test_tables(run, tmp_path, content, words):
  lengths = "--gin.TASK_FEATURE_LENGTHS={'inputs': 8, 'targets': 4}"
  line = run(table(tmp_path, content), lengths)
  assert all(word in line for word in words), line


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    (["TARGETS=None", "LABELS=None"], ["target '' of example 0", "empty", "TARGETS"]),
    (["METRICS=('pearson',)"], ["'pearson'", "numbers", "'negative'"]),
    (["METRICS=('spearman',)", "LABELS=None"], ["'spearman'", "target 'positive'"]),
    (["METRICS=('multirc',)"], ["'multirc'", "'group'"]),
    (["METRICS=('f1_binary',)", "LABELS=('a', 'b', 'c')"], ["two classes", "3 labels"]),
    (["LABELS='positive'"], ["`LABELS`", "list", "'positive'"]),
    (["LABELS=[0.5, 1.5]"], ["`LABELS`", "[0.5, 1.5]", "Give ['0.5', '1.5']"]),
    (["LABELS=[0, 1]"], ["`LABELS`", "[0, 1]", "Give ['0', '1']"]),
    (["QUOTED=1"], ["`QUOTED` is 1", "True or False"]),
    (["SHOTS=0"], ["`SHOTS` is 0", "from 1"]),
    (
      ["TRUNCATE=True", "TASK_FEATURE_LENGTHS={'inputs': 16, 'targets': 1}"],
      ["TASK_FEATURE_LENGTHS", "end mark alone", "Give targets 2 or more"],
    ),
  ],
)
def test_tasks(run, flags, words):
  line = run(*(f"--gin.{flag}" for flag in flags))
  assert all(word in line for word in words), line


def test_a_pipe_in_place_of_a_table(run, tmp_path):
  os.mkfifo(tmp_path / "pipe.tsv")
  line = run(f"--gin.TRAIN_FILE='{tmp_path}/pipe.tsv'")
  assert "`TRAIN_FILE`" in line and "not a regular file" in line


def test_a_label_outside_the_map(run):
  line = run("--gin.LABEL_MAP={'positive': 'yes', '0': 'no'}", "--gin.LABELS=None")
  assert "the label 'negative' is not in `LABEL_MAP`" in line


def test_rows_that_leave_nothing(run):
  assert "there is none" in run("--gin.ROWS={'label': 'neutral'}")


def test_what_the_vocabulary_cannot_write(run, tmp_path):
  content = ROWS + "x\t\u6f22\n"
  line = run(table(tmp_path, content), "--gin.LABELS=None")
  assert "target '\u6f22' of example 2 of the split 'train'" in line
  line = run(
    table(tmp_path, content), "--gin.LABELS=('negative', 'positive', '\u6f22')"
  )
  assert "label '\u6f22'" in line and "all its pieces are unknown" in line


# ---- prompts and backbones


def a_product(loaded, module=None, width=None, **card):
  """A prompt of 4 rows for a backbone, not trained."""
  width = width or loaded.backbone.spec.width
  module = module or Prompt(4, Dense(None), "encoder.input")
  rows = np.ones((1, 4, width), np.float32)
  facts = {"fingerprint": loaded.fingerprint, "width": width, "name": loaded.name}
  card = {"method": "prompt_tuning", "backbone": facts, "step": 0, "scores": {}, **card}
  tree = {"prompt": {"parameterise": {"prompt": rows}}}
  return product.Product(module, tree, card)


@pytest.fixture(scope="module")
def loaded(tiny_folder):
  return load(tiny_folder)


@pytest.mark.parametrize("shape", [(4, 8), (5, 16), (2, 4, 16)])
def test_a_prompt_file_of_another_shape(run, tmp_path, shape):
  np.save(tmp_path / "rows.npy", np.zeros(shape, np.float32))
  flag = f"--gin.PROMPT_FILE='{tmp_path}/rows.npy'"
  line = run(flag, files=["gin/inits/saved.gin"])
  assert f"shape {shape}" in line and "(1, 4, 16)" in line
  assert "PROMPT_LENGTH" in line and "width" in line


def test_a_prompt_file_of_another_method(run, tmp_path):
  tensors = {"prompt/a": np.zeros((4, 16)), "prompt/b": np.zeros(3)}
  safetensors_numpy.save_file(tensors, str(tmp_path / "prompt.safetensors"))
  flag = f"--gin.PROMPT_FILE='{tmp_path}/prompt.safetensors'"
  line = run(flag, files=["gin/inits/saved.gin"])
  assert "['prompt/a', 'prompt/b']; name one of them" in line


def test_a_prompt_of_another_backbone(tmp_path, loaded, capsys):
  a_product(loaded, width=8).save(tmp_path / "narrow")
  facts = {"width": 16, "fingerprint": "0123", "name": loaded.name}
  a_product(loaded, backbone=facts).save(tmp_path / "other")
  with pytest.raises(ValueError, match="backbone of width 8, this one has 16"):
    answer.open_session(str(tmp_path / "narrow"), loaded.name, force=True)
  with pytest.raises(ValueError, match="trained on backbone 0123.*force=True"):
    answer.open_session(str(tmp_path / "other"), loaded.name)
  answer.open_session(str(tmp_path / "other"), loaded.name, force=True)
  (tmp_path / "in.txt").write_text("a film\n")
  argv = [
    "--gin_file=gin/infer.gin",
    f"--gin.PROMPT_DIR='{tmp_path}/other'",
    f"--gin.INPUT_FILE='{tmp_path}/in.txt'",
    f"--gin.OUTPUT_FILE='{tmp_path}/out/answers.jsonl'",
  ]
  with pytest.raises(SystemExit):
    config.run_verb(infer.infer, argv)
  (line,) = capsys.readouterr().err.splitlines()
  assert "0123" in line and loaded.fingerprint in line
  assert not (tmp_path / "out").exists()


def test_a_prompt_folder_whose_files_do_not_fit(tmp_path, loaded):
  """card.json of one method beside the numbers of another."""
  one, two = tmp_path / "one", tmp_path / "two"
  a_product(loaded).save(one)
  longer = Prompt(6, Dense(None), "decoder.input")
  other = a_product(loaded, longer)
  other.trainable = {"prompt": {"parameterise": {"prompt": np.ones((1, 6, 16))}}}
  other.save(two)
  assert product.load(one).module == Prompt(4, Dense(None), "encoder.input")
  shutil.copy(two / "card.json", one / "card.json")
  with pytest.raises(ValueError, match="Copy both files from the same run"):
    product.load(one)
  card = json.loads((two / "card.json").read_text())
  for damage, words in [
    ({"format": "other/9"}, "says format 'other/9'"),
    ({"module": {"class": "os:system"}}, "os:system"),
    ({"module": {"class": "prompt_tuning.conditions.nowhere:X"}}, "does not exist"),
  ]:
    (two / "card.json").write_text(json.dumps({**card, **damage}))
    with pytest.raises(ValueError, match=words):
      product.load(two)
  (two / "card.json").write_text("{")
  with pytest.raises(ValueError, match="is damaged"):
    product.load(two)
  with pytest.raises(ValueError, match="holds no card.json.*Give the folder `prompt/`"):
    product.load(tmp_path / "three")


def test_the_parameters_of_another_length(loaded):
  """A module whose length is not that of its numbers says so when it is used."""
  wrong = a_product(loaded, Prompt(5, Dense(None), "encoder.input"))
  session = answer.session(loaded, wrong)
  batch = {"inputs": np.ones((1, 5), np.int32), "prompt_index": np.arange(5)[None]}
  with pytest.raises(ValueError, match=r"Dense.prompt.*\(1, 5, 16\), got \(1, 4, 16\)"):
    session.model.inject(session.params, batch)


def test_a_checkpoint_that_lacks_and_adds_parameters(run, tmp_path, tiny_folder):
  folder = tmp_path / "backbone"
  shutil.copytree(tiny_folder, folder)
  weights = safetensors_numpy.load_file(str(folder / "model.safetensors"))
  names = sorted(weights)
  del weights[names[0]], weights[names[3]]
  weights["adapter/up"] = np.zeros(2, np.float32)
  weights["adapter/down"] = np.zeros(2, np.float32)
  safetensors_numpy.save_file(weights, str(folder / "model.safetensors"))
  line = run(f"--gin.INITIAL_CHECKPOINT_PATH='{folder}'")
  assert f"lacks 2: {names[0]}, {names[3]}" in line
  assert "adds 2: adapter/down, adapter/up" in line


def test_a_checkpoint_that_is_not_there(run, tmp_path):
  line = run(f"--gin.INITIAL_CHECKPOINT_PATH='{tmp_path}/nowhere'")
  assert "INITIAL_CHECKPOINT_PATH" in line and "config.json" in line
  line = run("--gin.INITIAL_CHECKPOINT_PATH=None")
  assert "`BACKBONE` and `VOCABULARY` must be bound" in line


# ---- MODEL_DIR


def test_a_folder_of_another_configuration(run, tmp_path):
  folder = tmp_path / "run"
  folder.mkdir()
  recipe = str(tmp_path / "recipe.gin")
  config.parse([recipe], ["LEARNING_RATE = 0.1", "LOG_PERIOD = 7", "SEED = 5"])
  (folder / "config.gin").write_text(config.text())
  line = run()
  assert "holds a run of another configuration" in line
  assert "LEARNING_RATE: 0.1 there, 0.3 now; SEED: 5 there, 0 now" in line
  assert "LOG_PERIOD" not in line
  (folder / "config.gin").unlink()
  (folder / "checkpoints" / "2").mkdir(parents=True)
  assert "checkpoints without a config.gin" in run()


def no_space(*args, **kwargs):
  raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(args[-1]))


def left(folder):
  return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_folder_that_cannot_be_written(tmp_path, run, capsys, monkeypatch):
  (tmp_path / "file").write_text("not a folder")
  assert f"{tmp_path}/file" in run(f"--gin.MODEL_DIR='{tmp_path}/file/run'")
  argv = [f"--gin_file={tmp_path}/recipe.gin"]
  monkeypatch.setattr(os, "replace", no_space)
  with pytest.raises(SystemExit):
    config.run_verb(train.train, argv)
  (line,) = capsys.readouterr().err.splitlines()
  assert "No space left on device" in line
  assert left(tmp_path / "run") == []


def test_a_full_disk_leaves_the_old_product(tmp_path, loaded, monkeypatch):
  folder = tmp_path / "prompt"
  a_product(loaded).save(folder)
  before = (folder / "card.json").read_bytes()

  def half_written(path, data):
    with open(path, "wb") as file:
      file.write(data[: len(data) // 2])
    no_space(path)

  monkeypatch.setattr(pathlib.Path, "write_bytes", half_written)
  for target in (folder, tmp_path / "new"):
    with pytest.raises(OSError, match="No space left"):
      a_product(loaded, step=9).save(target)
  assert [path.name for path in tmp_path.iterdir()] == ["prompt"]
  assert left(folder) == ["card.json", "prompt.safetensors"]
  assert (folder / "card.json").read_bytes() == before
  assert product.load(folder).card["step"] == 0


def test_a_full_disk_leaves_the_old_answers(tmp_path, monkeypatch):
  path = tmp_path / "answers.jsonl"
  answer.write_lines(path, [{"input": "a", "prediction": "caf\u00e9"}])
  monkeypatch.setattr(os, "replace", no_space)
  with pytest.raises(OSError, match="No space left"):
    answer.write_lines(path, [{"input": "a", "prediction": "x"}])
  assert left(tmp_path) == ["answers.jsonl"]
  assert path.read_text() == '{"input": "a", "prediction": "caf\u00e9"}\n'


# ---- what the other verbs read


@pytest.mark.parametrize(
  ("name", "content", "words"),
  [
    ("in.txt", b"fine\n\xff\n", "in.txt line 2 is not UTF-8"),
    ("in.tsv", b"text\tlabel\nfine\n", "in.tsv line 2 has 1 fields"),
    ("in.jsonl", b'{"a": "x", "b": "y"}\n', r"line 1: which column.*'a', 'b'.*INPUTS"),
    ("in.txt.gz", b"no gzip", "no whole gzip file"),
    ("in.txt.gz", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03K", "no whole gzip file"),
    ("other.txt", None, "`INPUT_FILE` is .* which does not exist"),
  ],
)
def test_inputs_of_infer(tmp_path, name, content, words):
  if content is not None:
    (tmp_path / name).write_bytes(content)
  with pytest.raises(ValueError, match=words):
    list(reading.asked(str(tmp_path / name), None))


def test_lines_of_infer(tmp_path):
  (tmp_path / "in.txt").write_bytes("\ufeffa\u2028b\r\n\nc".encode())
  found = [one.text for one in reading.asked(str(tmp_path / "in.txt"), None)]
  assert found == ["a\u2028b", "", "c"]


def test_eval_needs_a_prompt_or_a_backbone(run, tmp_path, monkeypatch):
  recipe = tmp_path / "eval.gin"
  recipe.write_text(
    'include "gin/eval.gin"\ninclude "gin/tasks/files.gin"\nINPUTS = "{text}"\n'
    f"TRAIN_FILE = None\nVALIDATION_FILE = '{tmp_path}/data.tsv'\n"
    f"EVAL_DIR = '{tmp_path}/eval'\n"
  )
  argv = [f"--gin_file={recipe}"]
  for flags, words in [
    ([], "`PROMPT_DIR` and `INITIAL_CHECKPOINT_PATH` are both None"),
    ([f"--gin.PROMPT_DIR='{tmp_path}'"], "holds no card.json"),
  ]:
    with pytest.raises(SystemExit) as stop:
      config.run_verb(eval_verb.evaluate_prompt, [*argv, *flags])
    assert words in str(stop.value.__cause__)
  assert not (tmp_path / "eval").exists()

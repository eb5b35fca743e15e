"""A run whose files all lie in an object store: a folder that answers to gs://bucket/."""

import json
import sys
import types

import numpy as np
import process_tools
import pytest
from etils import epath
from etils.epath import backend, gpath
from orbax.checkpoint._src.path import gcs_utils

import prompt_tuning as pt
from prompt_tuning import export, infer, train
from prompt_tuning.core import files, folders
from prompt_tuning.engine import config, product

REMOTE = "gs://bucket"


class Bucket(type(backend.os_backend)):
  """epath's operations, on a local folder, under names of an object store."""

  def __init__(self, root):
    self.root = str(root)

  def near(self, path):
    return str(path).replace(REMOTE, self.root)

  def far(self, path):
    return str(path).replace(self.root, REMOTE)

  def open(self, path, mode):
    return super().open(self.near(path), mode)

  def exists(self, path):
    return super().exists(self.near(path))

  def isdir(self, path):
    return super().isdir(self.near(path))

  def listdir(self, path):
    return super().listdir(self.near(path))

  def glob(self, path):
    return [self.far(found) for found in super().glob(self.near(path))]

  def walk(self, path, **options):
    for folder, inner, names in super().walk(self.near(path), **options):
      yield self.far(folder), inner, names

  def makedirs(self, path, **options):
    super().makedirs(self.near(path), **options)

  def mkdir(self, path, **options):
    super().mkdir(self.near(path), **options)

  def rmtree(self, path):
    super().rmtree(self.near(path))

  def remove(self, path):
    super().remove(self.near(path))

  def rename(self, path, dst):
    super().rename(self.near(path), self.near(dst))

  def replace(self, path, dst):
    super().replace(self.near(path), self.near(dst))

  def copy(self, path, dst, overwrite):
    super().copy(self.near(path), self.near(dst), overwrite)

  def stat(self, path):
    return super().stat(self.near(path))


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
  """The folder behind gs://bucket, for epath and for Orbax's tensorstore."""
  root = tmp_path_factory.mktemp("bucket")
  own = Bucket(root)

  def store(path):
    return {"driver": "file", "path": own.near(path)}

  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(gpath._PREFIX_TO_BACKEND, "gs", own)
    patch.setattr(gpath, "_is_tf_installed", lambda: False)
    patch.setattr(gcs_utils, "get_kvstore_for_gcs", store)
    patch.setattr(gcs_utils, "is_hierarchical_namespace_enabled", lambda path: False)
    patch.setitem(sys.modules, "google.cloud.storage", types.ModuleType("storage"))
    yield root


@pytest.fixture(scope="module")
def run(bucket, tiny_folder, cache):
  """gs://bucket/run, stopped at step 4 and gone on with to step 8; its flags."""
  process_tools.write_task(bucket, tiny_folder)
  recipe = (bucket / "recipe.gin").read_text().replace(str(bucket), REMOTE)
  (bucket / "recipe.gin").write_text(recipe)
  given = [f"--gin_file={REMOTE}/recipe.gin", f"--gin.MODEL_DIR='{REMOTE}/run'"]
  given += ["--gin.SAVE_PERIOD=2", "--gin.EVAL_PERIOD=4", "--gin.LOG_PERIOD=1"]
  config.run_verb(train.train, [*given, "--gin.TRAIN_STEPS=4"])
  config.run_verb(train.train, [*given, "--gin.TRAIN_STEPS=8"])
  return given


def test_a_run_lies_there_whole_and_goes_on(bucket, run, tiny_folder, tmp_path):
  assert {path.name for path in (bucket / "run").iterdir()} == process_tools.LEFT
  lines = (bucket / "run" / "metrics.jsonl").read_text().splitlines()
  found = [json.loads(line) for line in lines]
  assert [r["step"] for r in found if r["split"] == "train"] == list(range(1, 9))
  # Equal to a run on this machine that nobody stopped.
  near = tmp_path / "run"
  given = [flag for flag in run if "MODEL_DIR" not in flag]
  given += [f"--gin.MODEL_DIR='{near}'", "--gin.TRAIN_STEPS=8"]
  config.run_verb(train.train, given)
  assert lines == (near / "metrics.jsonl").read_text().splitlines()
  name = "prompt/prompt.safetensors"
  assert (near / name).read_bytes() == (bucket / "run" / name).read_bytes()


def test_another_configuration_is_refused_there_too(run, capsys):
  with pytest.raises(SystemExit):
    config.run_verb(train.train, [*run, "--gin.TRAIN_STEPS=8", "--gin.SEED=9"])
  assert "'gs://bucket/run' holds a run of another" in capsys.readouterr().err


def test_answers_are_read_and_written_there(bucket, run, tiny_folder):
  (bucket / "inputs.txt").write_text("a good film\ndull\n")
  config.parse(
    ["gin/infer.gin"],
    [
      f"PROMPT_DIR = '{REMOTE}/run/prompt'",
      f"INPUT_FILE = '{REMOTE}/inputs.txt'",
      f"OUTPUT_FILE = '{REMOTE}/out/answers.jsonl'",
    ],
  )
  assert config.call(infer.infer) == 2
  answers = (bucket / "out" / "answers.jsonl").read_text().splitlines()
  assert [json.loads(line)["input"] for line in answers][1] == "review: dull"


def test_prompts_leave_for_there_and_come_back(bucket, run):
  export.export("numpy", f"{REMOTE}/p.npy", f"{REMOTE}/run")
  (read,) = pt.load_prompt(f"{REMOTE}/p.npy").trainable["prompt"].values()
  np.testing.assert_array_equal(read["prompt"][0], np.load(bucket / "p.npy"))
  prompt = pt.load_prompt(f"{REMOTE}/run/prompt")
  prompt.save(f"{REMOTE}/copy")
  assert {path.name for path in (bucket / "copy").iterdir()} == {
    "card.json",
    "prompt.safetensors",
  }
  again = product.load(epath.Path(f"{REMOTE}/copy"))
  assert again.card["step"] == prompt.card["step"]


def test_what_a_bucket_needs_is_said_first(run, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "google.cloud.storage", None)
  with pytest.raises(SystemExit):
    config.run_verb(train.train, [*run, "--gin.TRAIN_STEPS=12"])
  assert "pip install 'prompt-tuning[gcs]'" in capsys.readouterr().err


def test_what_stood_there_stands_after_an_error(bucket):
  files.write_text(f"{REMOTE}/kept/a.txt", "before")

  def write():
    with folders.whole_folder(f"{REMOTE}/kept") as aside:
      (aside / "a.txt").write_text("after")
      raise RuntimeError

  with pytest.raises(RuntimeError):
    write()
  assert (bucket / "kept" / "a.txt").read_text() == "before"


def test_an_unknown_kind_of_place_is_named():
  with pytest.raises(ValueError, match="'ftp://x/y' is of a kind that is not known"):
    files.at("ftp://x/y")

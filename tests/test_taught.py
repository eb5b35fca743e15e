"""Teachers, a joint prompt that learns from them, and a target: MPT's three stages."""

import json
import shutil

import jax
import method_tools as tools
import numpy as np
import process_tools
import pytest

from prompt_tuning import train
from prompt_tuning.conditions.task_id import TaskId
from prompt_tuning.core import trainable as branches
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.core.prompt import Prompt
from prompt_tuning.engine import config, product
from prompt_tuning.inits import vocabulary
from prompt_tuning.parameterisers.dense import Dense
from prompt_tuning.parameterisers.shared_rank import SharedRank
from prompt_tuning.procedures.phase import Result
from prompt_tuning.procedures.taught import FACTORS, SHARED, TABLE, TABLES, Taught

RECIPE = """from __gin__ import dynamic_registration
from prompt_tuning.data import files
include "{work}/recipe.gin"
SOURCE_TASKS = {{"one": @files.Files(), "two": @flipped/files.Files()}}
flipped/files.Files:
  name = "flipped"
  label_map = {{"positive": "negative", "negative": "positive"}}
SOURCE_STEPS = 2
JOINT_STEPS = 3
TRAIN_STEPS = 0
EVAL_PERIOD = 0
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_folder, cache):
  """MODEL_DIR of a run whose target takes no step."""
  work = tmp_path_factory.mktemp("taught")
  shutil.copytree(tiny_folder, work / "backbone")
  text = process_tools.RECIPE.replace("prompt_tuning.gin", "mpt_staged.gin")
  process_tools.write_task(work, f"{work}/backbone", text)
  (work / "taught.gin").write_text(RECIPE.format(work=work))
  flags = [f"--gin_file={work}/taught.gin", f"--gin.MODEL_DIR='{work}/run'"]
  config.run_verb(train.train, flags)
  return work / "run"


def tensors(run, name):
  (folder,) = (run / "phases").glob(f"*_{name}")
  made = product.load(folder / "prompt")
  return {**branches.flatten(made.frozen), **branches.flatten(made.trainable)}


def test_the_stages_and_their_tasks(run):
  names = [path.name for path in sorted((run / "phases").iterdir())]
  assert names == [
    *("00_teach_one", "01_teach_two", "02_teachers", "03_joint", "04_target")
  ]
  scores = json.loads((run / "phases" / "03_joint" / "result.json").read_text())
  assert {"flipped/loss", "distil_kl"} <= set(scores["scores"])
  assert scores["steps"] == 3


def test_the_teachers_are_one_prompt_by_task(run):
  table_KGPH = tensors(run, "teachers")[TABLES]
  for k, name in enumerate(("one", "two")):
    np.testing.assert_array_equal(table_KGPH[k], tensors(run, f"teach_{name}")[TABLE])
  assert np.abs(table_KGPH[0] - table_KGPH[1]).max() > 1e-3


def test_the_joint_product_holds_no_teacher_and_has_moved(run):
  joint = tensors(run, "joint")
  assert set(joint) == {SHARED, *FACTORS}
  left_KGPr, right_KGrH = (joint[path] for path in FACTORS)
  for factor in (left_KGPr, right_KGrH):
    assert (factor != 1).any() and np.abs(factor[0] - factor[1]).max() > 1e-4
  (folder,) = (run / "phases").glob("*_joint")
  assert json.loads((folder / "run.json").read_text())["identity"]["teachers"]


def test_the_target_begins_as_built_by_hand(run):
  """Shared table, and the mean of factors whose left ones have size 1."""
  joint, target = tensors(run, "joint"), tensors(run, "target")
  left_KP, right_KH = (
    joint[path].reshape(2, -1) for path in FACTORS
  )  # one table, of rank 1
  size_K1 = np.sqrt((left_KP**2).mean(1, keepdims=True))
  wanted = {
    TABLE: joint[SHARED],
    "prompt/transforms_0/row": (left_KP / size_K1).mean(0)[None],
    "prompt/transforms_0/width": (right_KH * size_K1).mean(0)[None],
  }
  assert set(target) == set(wanted)
  for path, value in wanted.items():
    np.testing.assert_allclose(target[path], value, rtol=1e-5, atol=1e-6)
  made = product.load(run)
  assert made.card["method"] == "mpt_staged" and not made.module.reads_input


def test_teachers_and_the_shared_table_start_from_one_draw():
  """So that position i of all prompts is comparable."""
  start = vocabulary.sampled(50)
  teacher = Prompt(4, Dense(start), "encoder.input")
  joint = Prompt(4, SharedRank(start), "encoder.input", TaskId(3))
  one, other = (
    branches.flatten(
      PromptedModel(tools.BACKBONE, prompt).init_prompt(
        jax.random.key(1), tools.backbone_params()
      )
    )
    for prompt in (teacher, joint)
  )
  np.testing.assert_array_equal(
    one["parameterise/prompt"], other["parameterise/shared"]
  )
  for factor in ("left", "right"):
    assert (other[f"parameterise/{factor}"] == 1).all()


def procedure(**given):
  start = vocabulary.sampled(50)
  joint = Prompt(4, SharedRank(start), "encoder.input", TaskId(1))
  sentences = dict.fromkeys(("teacher", "teachers", "joint"), joint)
  own = {"sources": {"a": "A", "b": "B"}, "mixture": lambda tasks: tasks}
  return Taught(**{**own, **sentences, "objective": None, **given})


def test_without_balance_the_start_is_the_plain_mean():
  done = [Result(name) for name in ("teach_a", "teach_b", "teachers", "joint")]
  joint, target = (procedure(balance=False).next(done[:n]) for n in (3, 4))
  assert joint.task == ("A", "B") and joint.prompt.tasks == 2
  row = target.start["prompt/transforms_0/row"]
  held = {f"joint:{FACTORS[0]}": np.arange(6.0).reshape(2, 1, 3, 1)}
  found = row.made([row.of.made([held[row.of.of]])])
  np.testing.assert_array_equal(found, [[1.5, 2.5, 3.5]])
  assert procedure().next([*done, Result("target")]) is None


@pytest.mark.parametrize("sources", [None, {}, {"a": 1}, {"a b": 1, "c": 2}])
def test_what_are_no_sources(sources):
  with pytest.raises(ValueError, match=r"`Taught.sources` \(SOURCE_TASKS\) is"):
    procedure(sources=sources)

"""The table of macros knows every one, and a wrong value ends in one sentence."""

import itertools
import math

import numpy as np
import pytest

from prompt_tuning import eval as eval_verb
from prompt_tuning import infer, precompile, train
from prompt_tuning.core.prompt import LONGEST
from prompt_tuning.engine import config, macros, optimizer
from prompt_tuning.engine.kinds import Made

TRAIN = """# A whole run.
include "gin/train.gin"
include "gin/schedules/warmup_linear.gin"
include "gin/backbones/mini.gin"
include "gin/tasks/files.gin"
include "gin/outputs/text_greedy.gin"
include "gin/methods/s_idpg_phm.gin"
MODEL_DIR = "runs/never"
TRAIN_FILE = "train.tsv"
VALIDATION_FILE = None
INPUTS = "{text}"
PROMPT_LENGTH = 4
"""
EVAL = """# An evaluation.
include "gin/eval.gin"
include "gin/tasks/registered.gin"
include "gin/outputs/text_sample.gin"
EVAL_DIR = "runs/never"
MIXTURE_OR_TASK_NAME = "mine"
MIXTURE_OR_TASK_MODULE = None
"""
INFER = """# Answers.
include "gin/infer.gin"
include "gin/outputs/choice.gin"
INPUT_FILE = "in.txt"
OUTPUT_FILE = "out.jsonl"
"""
PRECOMPILE = """# Shapes alone.
include "configs/pod/xl_ipt_mlp.gin"
"""
VERBS = {
  "train": (TRAIN, lambda argv: config.run_verb(train.train, argv)),
  "eval": (EVAL, lambda argv: config.run_verb(eval_verb.evaluate_prompt, argv)),
  "infer": (INFER, lambda argv: config.run_verb(infer.infer, argv)),
  "precompile": (
    PRECOMPILE,
    lambda argv: precompile.main([*argv, "--topology=cpu:1"]),
  ),
}
# Gin text of values of other types; each macro refuses what its kind does not take.
VALUES = ("None", "'text'", "2.5", "-1", "1e999", "True", "[2.5]", "{'a': None}", "7")


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch):
  """The one line that a verb ends with, before anything is made."""

  def nothing(*args, **kwargs):
    pytest.fail("this should have been refused before it ran")

  monkeypatch.setattr(config, "call", nothing)
  monkeypatch.setattr(precompile.chips, "topology", nothing)

  def error_of(verb, *flags, text=""):
    recipe, run = VERBS[verb]
    (tmp_path / "recipe.gin").write_text(recipe + text)
    with pytest.raises(SystemExit) as stop:
      run([f"--gin_file={tmp_path}/recipe.gin", *flags])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and len(line) < 500
    return line

  return error_of


# ---- the table


def test_the_table_knows_every_macro_of_the_gin_files():
  missing = {
    name: file for name, file in macros.named().items() if name not in macros.TABLE
  }
  rows = "\n".join(f'  "{name}": Row(whole(1), "..."),' for name in sorted(missing))
  assert not missing, (
    f"{missing} are not in TABLE. Add to prompt_tuning/engine/macro_table.py a row for "
    f"each, with its kind of engine/kinds.py and what it does:\n{rows}"
  )
  left = set(macros.TABLE) - set(macros.named())
  assert not left, f"no gin file names {left}: take the rows out of macro_table.py"


def test_the_list_of_macros():
  rows = {row.name: row for row in macros.table()}
  assert list(rows) == list(macros.TABLE)
  batch, home = rows["BATCH_SIZE"], rows["MODEL_DIR"]
  assert (batch.type, batch.default) == ("a whole number from 1", "32")
  assert (batch.meaning, batch.file) == ("rows of a training step", "gin/train.gin")
  assert home.default is None and home.file is None and "path" in home.type
  assert rows["TASK_FEATURE_LENGTHS"].default == '{"inputs": 128, "targets": 8}'
  assert rows["ATTENTION"].type == "one of 'xla', 'cudnn', 'pallas'"
  assert rows["ASSIGNMENT_MAP"].default.startswith('[ ("state/.*", None),')
  for row in rows.values():
    assert row.type and row.meaning and "\n" not in f"{row.type}{row.meaning}"


def test_the_table_agrees_with_the_code():
  from prompt_tuning.backbones.common import switches
  from prompt_tuning.backbones.t5 import config as t5
  from prompt_tuning.conditions import pooled
  from prompt_tuning.data import features

  for name, known in [
    ("PROMPT_PLACE", features.PLACES),
    ("REMAT_POLICY", switches.REMAT_POLICIES),
    ("ATTENTION", t5.ATTENTION),
    ("WEIGHTS_DTYPE", switches.WEIGHTS),
    ("CODE_POOL", pooled.POOLS),
  ]:
    listed = "one of " + ", ".join(map(repr, known))
    assert macros.TABLE[name].kind.words.removesuffix(", or None") == listed
  assert macros.wrong("PROMPT_LENGTH", LONGEST) is None
  assert macros.wrong("PROMPT_LENGTH", LONGEST + 1)


def test_a_caller_may_have_its_own_name_for_a_macro():
  told = macros.wrong("BATCH_SIZE", 4.0, "batch_size")
  assert told.startswith("`batch_size` is 4.0; it must be a whole number from 1")
  assert told.endswith("Give 4.")
  assert macros.wrong("NOT_OURS", object()) is None
  assert macros.wrong("SEED", 0) is None


# ---- values


@pytest.mark.parametrize(
  ("flag", "words"),
  [
    ("BATCH_SIZE=4.0", "a whole number from 1 (rows of a training step). Give 4."),
    ("BATCH_SIZE='4'", "Give 4."),
    ("BATCH_SIZE=True", "The default is 32 (gin/train.gin)."),
    ("BATCH_SIZE=99999999999", "Give 2147483647 or less."),
    ("BATCH_SIZE=four", "`BATCH_SIZE` is four; it must be a whole number"),
    ("BATCH_SIZE=", "`BATCH_SIZE` is empty; it must be a whole number"),
    ("SHOTS=2.5", "`SHOTS` is 2.5; it must be a whole number from 1, or None"),
    ("SEED=-1", "a whole number from 0"),
    ("TASK_FEATURE_LENGTHS=48", 'Give {"inputs": 48, "targets": 8}.'),
    ("TASK_FEATURE_LENGTHS={'inputs': 0}", "two whole numbers from 1"),
    ("TASK_FEATURE_LENGTHS={'inputs': 9.0, 'targets': 2}", '{"inputs": 9, "targets"'),
    ("LEARNING_RATE=-1", "above 0 (rate at its height). To train nothing, set TRAIN_"),
    ("LEARNING_RATE=1e999", "`LEARNING_RATE` is inf; it must be a finite number"),
    ("LEARNING_RATE='0.1'", "Give 0.1."),
    ("CLIP_NORM=-1", "For no clipping set CLIP_NORM = None."),
    ("CLIP_NORM=0", "above 0, or None"),
    ("PACK_SEGMENTS=0", "a whole number from 1"),
    ("MICROBATCHES=2.0", "Give 2."),
    ("TRAINABLE='prompt'", "Give ('prompt',)."),
    ("TRAINABLE=prompt", "Give ('prompt',)."),
    ("LABELS=[0, 1]", "Give ['0', '1']."),
    ("LABELS=[good, bad]", "a list of texts, such as"),
    ("METRICS='accuracy'", "Give ('accuracy',)."),
    ("MODEL_DIR=5", "a path, as text in quotes (folder of a run). Give '5'."),
    ("MODEL_DIR=''", "a path"),
    ("MODEL_DIR=None", "`MODEL_DIR` is None"),
    ("TASK=None", "Include a file of gin/tasks/."),
    ("EVAL_PERIOD=0.5", "a whole number from 0"),
    ("DROPOUT_RATE=1.5", "from 0 below 1"),
    ("LABEL_SMOOTHING=1", "from 0 below 1"),
    ("Z_LOSS=nan", "`Z_LOSS` is nan; it must be a finite number from 0"),
    ("PATIENCE=-1", "a whole number from 0"),
    ("TENSORBOARD=1", "True or False (write TensorBoard events too). Give True."),
    ("TENSORBOARD=false", "Give False."),
    ("REMAT_POLICY='ful'", "Give 'full'."),
    ("OPTIMIZER=@optimizer.Optimizer", "Give @optimizer.Optimizer()."),
    ("OPTIMIZER='adamw'", "an object that gin makes"),
    ("AXIS_RULES=('batch', 'data')", "a list, such as"),
    ("MODEL_PARALLEL_SUBMESH=(2, 0)", "a list, such as (2, 2, 1, 1), or None"),
    ("BRANCH_SCHEDULES={'prompt': 0.1}", "a mapping, such as"),
    ("SEED=%SEED", "read each other"),
    (
      "OPTIMIZER=@optimizer.Optimizer(",
      "`OPTIMIZER` is @optimizer.Optimizer(; it must",
    ),
    ("LABELS=('good',", "a list of texts, such as"),
    (f"SEED={'[' * 50000}", "a whole number from 0"),
    ("MODEL_DIR='\\ud800'", "a path, as text"),
    ("train.train_steps=3", "Give --gin.TRAIN_STEPS=3."),
    ("train.train.train_steps=3", "Give --gin.TRAIN_STEPS=3."),
    ("optimizer.warmup_linear.steps=3", "Give --gin.TRAIN_STEPS=3."),
    ("batch_size=3", "Did you mean 'BATCH_SIZE'?"),
  ],
)
def test_a_wrong_value(refused, flag, words):
  assert words in refused("train", f"--gin.{flag}")


def test_one_target_position_is_an_end_mark(refused):
  flag = "--gin.TASK_FEATURE_LENGTHS={'inputs': 8, 'targets': 1}"
  line = refused("train", flag, "--gin.TRUNCATE=True")
  assert "its end mark alone. Give targets 2" in line


def test_arguments_bound_in_a_file_are_asked_too(refused):
  text = "from __gin__ import dynamic_registration\nfrom prompt_tuning import train\n"
  records = (
    "from prompt_tuning.engine import loop\nfrom prompt_tuning.engine import recipe\n"
  )
  line = refused("train", text=f"{text}{records}recipe.Recipe.batch_size = 4.0\n")
  assert "`recipe.Recipe.batch_size` is 4.0" in line and "Give 4." in line
  line = refused("train", text=f"{text}{records}loop.Plan.steps = -1\n")
  assert "`loop.Plan.steps` is -1" in line and "steps in all" in line
  line = refused("train", text=f"{text}train.train.task = None\n")
  assert "`train.train.task` is None" in line


@pytest.mark.parametrize("verb", VERBS)
def test_every_macro_in_every_verb(refused, verb, tmp_path):
  """Values of other types end in one sentence that names macro, value and cure."""
  recipe, _ = VERBS[verb]
  (tmp_path / "own.gin").write_text(recipe)
  config.parse([f"{tmp_path}/own.gin"], check=False)
  read = sorted(config.names() & set(macros.TABLE))
  assert len(read) >= {"train": 50, "precompile": 50}.get(verb, 15)
  for i, name in enumerate(read):
    kind = macros.TABLE[name].kind
    values = {text: eval(text) for text in VALUES}
    wrong = [text for text in VALUES if not kind.accepts(values[text])]
    if verb == "precompile" and macros.TABLE[name].later:
      wrong.remove("None")
    assert len(wrong) >= 3, name
    # Each verb parses anew, so one of them a macro, another for each.
    text = wrong[i % len(wrong)]
    line = refused(verb, f"--gin.{name}={text}")
    assert f"`{name}` is {values[text]!r}; it must be {kind.words} (" in line
    assert line.endswith(".") and line.count(". ") >= 1, line


def test_what_a_macro_gets_of_another_is_asked(refused):
  line = refused("train", text="BATCH_SIZE = %MINE\nMINE = 4.0\n")
  assert "`BATCH_SIZE` is 4.0" in line


def test_functions_stand_where_they_may():
  for name in ("SCHEDULE", "RULE", "PROMPT_INIT"):
    assert macros.wrong(name, Made("optax.sgd", False)) is None
  for name in ("TASK", "BACKBONE", "PROMPT", "OUTPUT", "OBJECTIVE"):
    assert macros.wrong(name, Made("a.B", True)) is None
    assert "Give @a.B()." in macros.wrong(name, Made("a.B", False))


ODD = (
  *(None, True, -1, 0, 10**30, 0.5, math.nan, math.inf, 1j, "", "x", "9", "nan", b"x"),
  *([], [[]], [None], (1, 2), {}, {1: 2}, {"inputs": []}, {"inputs": "9"}, {"a"}),
  *([1, "x"], (("batch",),), (("batch", 1),), {(): 1}, object(), "a\0b", "a\nb"),
)


def test_no_value_breaks_the_check():
  for name, value in itertools.product(macros.TABLE, ODD):
    told = macros.wrong(name, value)
    assert told is None or (told.startswith(f"`{name}` is ") and "\n" not in told)
    assert macros.check({name: value}) in (None, told)


# ---- arguments past the macros


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_rates_and_steps_of_schedules(bad):
  for make in (
    lambda: optimizer.constant(bad),
    lambda: optimizer.warmup_linear(bad, 2, 10),
    lambda: optimizer.warmup_linear(0.1, bad, 10),
    lambda: optimizer.warmup_cosine(0.1, 2, bad),
    lambda: optimizer.inverse_square_root(bad, 2),
    lambda: optimizer.Adafactor(decay_rate=bad),
    lambda: optimizer.Adafactor(weight_decay=bad),
    lambda: optimizer.Adafactor(clipping=bad),
    lambda: optimizer.AdamW(b2=bad),
    lambda: optimizer.AdamW(weight_decay=bad),
    lambda: optimizer.Optimizer(optimizer.Adafactor(), None, clip_norm=bad),
  ):
    with pytest.raises(ValueError, match="must be a finite number"):
      make()
  with pytest.raises(ValueError, match="warmup_steps` must be a finite number above 0"):
    optimizer.inverse_square_root(0.1, 0)


def test_an_optimiser_may_be_given_numbers_of_numpy():
  rule = optimizer.Adafactor(decay_rate=np.float32(0.5), clipping=None)
  assert rule.decay_rate == 0.5
  assert float(optimizer.constant(np.float32(0.5))(0)) == 0.5
  with pytest.raises(ValueError, match="`AdamW.b1` must be .* got 'much'"):
    optimizer.AdamW(b1="much")


def test_an_optimiser_is_made_before_anything_is_read(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "recipe.gin").write_text(TRAIN)
  argv = ["--gin_file=recipe.gin", "--gin.optimizer.Adafactor.decay_rate=-1"]
  with pytest.raises(SystemExit):
    config.run_verb(train.train, argv)
  (line,) = capsys.readouterr().err.splitlines()
  assert "`Adafactor.decay_rate` must be a finite number above 0 to 1, got -1" in line
  assert [path.name for path in tmp_path.iterdir()] == ["recipe.gin"]


def test_an_argument_that_an_optimiser_lacks(refused):
  line = refused("train", "--gin.optimizer.Adafactor.decay_rat=0.7")
  assert "'decay_rat'" in line and "'decay_rate'" in line

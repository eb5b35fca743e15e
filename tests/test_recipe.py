"""One recipe for every verb that trains, and runs that were begun before it."""

import jax
import pytest

from prompt_tuning import precompile
from prompt_tuning.engine import config, explain, gin_state, loop, model_dir
from prompt_tuning.engine.recipe import Reading, Recipe

FILES = ["configs/pod/base.gin", "gin/backbones/mini.gin"]
TOY = ["MODEL_DIR = None", "TASK = None", "PROMPT_LENGTH = 3"]


def recipe_of(*bindings, method="prompt_tuning"):
  with gin_state.isolated():
    files = ["gin/train.gin", f"gin/methods/{method}.gin"]
    config.parse(files, [*TOY, *bindings])
    return config.macro("RECIPE"), config.text()


def test_every_number_of_a_run_stands_in_its_recipe():
  found, _ = recipe_of(
    *("TRAIN_STEPS = 70", "LOG_PERIOD = 5", "BATCH_SIZE = 8", "BUCKETS = 3"),
    *("CACHE_CODES = True", "DROPOUT_RATE = 0.25", "PATIENCE = 2", "SEED = 9"),
  )
  assert found.plan == loop.Plan(70, 5, save_period=None, patience=2)
  assert found.plan.saves == loop.save_period(70, 5) == 10
  assert (found.batch_size, found.buckets, found.cache_codes) == (8, 3, True)
  assert (found.dropout_rate, found.seed) == (0.25, 9)
  assert found.trainable == ("prompt",) and found.drops(None)


def test_lengths_of_two_sides_are_asked_for():
  with pytest.raises(ValueError, match="`TASK_FEATURE_LENGTHS` is .*two whole numbers"):
    Reading({"inputs": 3})
  with pytest.raises(ValueError, match="`steps` must not be negative"):
    loop.Plan(-1)


def before(text: str) -> str:
  """A configuration as a version without records wrote it."""
  old = {new: name for name, new in model_dir.MOVED.items()}
  lines = explain.bindings(text, tuple(model_dir.SINCE))
  return "\n".join(f"{old.get(name, name)} = {value}" for name, value in lines.items())


def test_a_run_that_was_begun_before_goes_on():
  _, now = recipe_of("TRAIN_STEPS = 70")
  old = before(now)
  assert "train.train.train_steps = %TRAIN_STEPS" in old and "recipe." not in old
  assert "train.train.batch_size = %BATCH_SIZE" in old and "RECIPE" not in old
  assert explain.differing_lines(old, now, ())
  assert explain.differing_lines(model_dir.modern(old), now, ()) == []
  assert model_dir.modern(now) == now
  # What differs in a number differs still.
  other = model_dir.modern(old.replace("SEED = 0", "SEED = 1"))
  (line,) = explain.differing_lines(other, now, ())
  assert line == "SEED: 1 there, 0 now"


def job_of(*bindings, method):
  files = ["configs/pod/base.gin", "gin/backbones/t5_1_1.gin"]
  sizes = "VOCAB_SIZE EMB_DIM NUM_HEADS HEAD_DIM MLP_DIM".split()
  numbers = [f"{name} = 8" for name in sizes]
  numbers += ["NUM_ENCODER_LAYERS = 1", "NUM_DECODER_LAYERS = 1", "NUM_PARTITIONS = 1"]
  numbers += ["PROMPT_LENGTH = 3", "BATCH_SIZE = 4", "EVAL_BATCH_SIZE = 4"]
  with gin_state.isolated():
    config.parse(
      [*files, f"gin/methods/{method}.gin"], [*numbers, *bindings], check=False
    )
    return precompile.job(None, jax.devices()[:1])


def test_precompile_runs_the_step_of_the_recipe_or_refuses():
  with pytest.raises(ValueError, match="`BUCKETS` is 2, .*--gin.BUCKETS=1"):
    job_of("BUCKETS = 2", method="prompt_tuning")
  with pytest.raises(ValueError, match="learns from \\['source'\\], prompts that"):
    job_of('include "gin/objectives/distil.gin"', method="prompt_tuning")
  with pytest.raises(ValueError, match="`CACHE_CODES` is True, which goes with"):
    job_of("CACHE_CODES = True", method="prompt_tuning")
  numbers = ("GENERATOR_WIDTH = 8", "PHM_ORDER = 4")
  numbers += ('TASK_FEATURE_LENGTHS = {"inputs": 9, "targets": 4}',)
  plain = job_of(*numbers, method="s_idpg_phm")
  cached = job_of(*numbers, "CACHE_CODES = True", method="s_idpg_phm")
  assert "code" not in plain.batch(4)
  assert cached.batch(4)["code"].shape == (4, 8)
  assert cached.batch(4, 2)["code"].shape == (4, 2, 8)
  # The pass of the encoder that makes codes is in the step no more.
  texts = [job.lower("train").as_text() for job in (plain, cached)]
  products = [text.count("dot_general") for text in texts]
  assert products[1] < products[0]
  assert isinstance(cached.recipe, Recipe)

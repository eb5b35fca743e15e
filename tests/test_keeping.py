"""`tune` with a folder: what it leaves, how it goes on, what it refuses."""

import os
import signal

import jax
import numpy as np
import pytest

import prompt_tuning as pt
from prompt_tuning.engine.optimizer import AdamW

PAIRS = [("a good film", "good"), ("a bad film", "bad")] * 3
OPTIONS = {
  "steps": 6,
  "prompt_length": 3,
  "batch_size": 2,
  "validation": PAIRS,
  "eval_period": 2,
  "log_period": 2,
}


@pytest.fixture(scope="module")
def model(tiny_folder):
  return pt.load_model(tiny_folder)


@pytest.fixture(scope="module")
def alone(model):
  """The prompt of the same call without a folder."""
  return pt.tune(model, PAIRS, **OPTIONS)


def same(one, other):
  pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
  return all(np.array_equal(a, b) for a, b in pairs)


def test_ctrl_c_saves_and_the_same_call_goes_on(model, alone, tmp_path, capfd):
  folder, heard = tmp_path / "run", []

  def end(step, metrics):
    heard.append((step, metrics["split"]))
    if heard[-1] == (2, "validation"):
      os.kill(os.getpid(), signal.SIGINT)

  with pytest.raises(KeyboardInterrupt, match="The same call of tune goes on"):
    pt.tune(model, PAIRS, model_dir=folder, callbacks=end, save_period=6, **OPTIONS)
  assert heard[-1][0] < 6
  made = pt.tune(model, PAIRS, model_dir=folder, save_period=6, **OPTIONS)
  assert same(made.trainable, alone.trainable)
  assert made.card["scores"] == pytest.approx(alone.card["scores"])
  # What the first call was told to end in is evaluated by the second.
  steps = [row["step"] for row in made.history if row["split"] == "validation"]
  assert steps == [2, 4, 6]
  left = {path.name for path in folder.iterdir()}
  assert {"checkpoints", "config.gin", "metrics.jsonl", "prompt"} <= left
  assert same(pt.load_prompt(folder).trainable, made.trainable)
  # Once more: finished, and nothing is trained.
  again = pt.tune(model, PAIRS, model_dir=folder, save_period=6, **OPTIONS)
  assert same(again.trainable, made.trainable) and again.nearest_tokens(1)
  assert capfd.readouterr().out == ""
  assert 'include "gin/train.gin"' in made.to_gin()


@pytest.mark.parametrize(
  ("given", "says"),
  [
    ({"model_dir": 5}, "`model_dir` is 5; it must be the path"),
    ({"optimizer": AdamW()}, "`optimizer` is given as an object, which a run in"),
    ({"steps": 0}, "nothing trains"),
    ({"learning_rate": 0.7}, "another configuration .*learning_rate: 0.3 there"),
    ({"train": PAIRS[:4]}, "training split"),
  ],
)
def test_what_is_refused(given, says, model, tmp_path):
  options = {**OPTIONS, "steps": 2, "model_dir": tmp_path / "run", "train": PAIRS}
  if {"learning_rate", "train"} & set(given):
    pt.tune(model, **options)
  with pytest.raises(ValueError, match=says):
    pt.tune(model, **{**options, **given})


def test_checkpoints_need_a_folder(model):
  with pytest.raises(ValueError, match="`save_period` is about checkpoints"):
    pt.tune(model, PAIRS, save_period=5, **OPTIONS)

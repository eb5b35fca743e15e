"""Whole runs of a toy."""

import pytest
from engine_tools import Recorder, Toy, U, same

from prompt_tuning.core import trainable as branches
from prompt_tuning.data.features import Layout
from prompt_tuning.data.lists import Lists
from prompt_tuning.engine import (
  fit,
  loop,
  optimizer,
)
from prompt_tuning.engine.recipe import Recipe
from prompt_tuning.objectives.cross_entropy import CrossEntropy


def toy_run(params, task, vocabulary, eval_period=0, **settings):
  """(what fit gives, what was kept, the recorder)."""
  recipe = Recipe(
    trainable=("prompt",),
    objective=CrossEntropy(),
    optimizer=optimizer.Optimizer(optimizer.Adafactor(), optimizer.constant(0.3)),
    plan=loop.Plan(3, log_period=1, eval_period=eval_period),
    batch_size=4,
    eval_batch_size=2,
    **settings,
  )
  kept, recorder = [], Recorder()
  fitted = fit.fit(
    Toy(segments=recipe.pack_segments),
    params["backbone"],
    vocabulary,
    task,
    Layout(16, U),
    recipe,
    None,
    recorder,
    keep=lambda *found: kept.append(found),
  )
  return fitted, kept, recorder


class Letters:
  """A vocabulary of one piece for each of a few letters."""

  pad_id, eos_id, unk_id = 0, 1, 2

  def encode(self, text):
    return [3 + ord(letter) % 8 for letter in text]

  def decode(self, ids):
    return "".join(chr(96 + (piece - 3) % 8) for piece in ids)


PAIRS = [("abc"[i % 3] * (i + 1), "xy"[i % 2]) for i in range(6)]


def test_a_run_in_buckets(params):
  pairs = [("a" * n, "xy"[n % 2]) for n in (1, 2, 3, 3, 13, 12, 14, 15)]
  _, _, recorder = toy_run(params, Lists(train=pairs), Letters(), buckets=2)
  assert [step for step, *_ in recorder.lines] == [1, 2, 3]
  with pytest.raises(ValueError, match="`BUCKETS` is 2, .* PACK_SEGMENTS is 3"):
    toy_run(params, Lists(train=pairs), Letters(), buckets=2, pack_segments=3)


def test_without_validation_the_last_state_is_the_product(params):
  fitted, kept, _ = toy_run(params, Lists(train=PAIRS), Letters())
  ((whole, trained, best),) = kept
  assert best == loop.Best(3)
  same(trained, branches.split(fitted.params, ("prompt",))[0])
  same(whole["backbone"], params["backbone"])


def test_packed_training_is_evaluated_unpacked(params):
  task = Lists(train=PAIRS, validation=PAIRS[:3])
  fitted, kept, recorder = toy_run(
    params, task, Letters(), eval_period=2, pack_segments=2
  )
  found = {n: values for n, split, values in recorder.lines if split == "validation"}
  assert sorted(found) == [2, 3]
  best = min(found, key=lambda n: found[n]["loss"])
  assert fitted.best == loop.Best(best, found[best])
  assert [entry[2].step for entry in kept] == [2, 3][: 1 + (best == 3)]
  same(fitted.trainable, kept[-1][1])

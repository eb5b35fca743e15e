"""Losses and predictions of a split."""

import types

import jax
import numpy as np
import pytest
from engine_tools import Toy, U, V, near, toy_losses

from prompt_tuning.data import batches
from prompt_tuning.data.features import Layout
from prompt_tuning.data.lists import Lists
from prompt_tuning.engine import (
  evaluate,
  sharding,
)
from prompt_tuning.objectives.cross_entropy import CrossEntropy
from prompt_tuning.outputs.choice import Choice


def toy_evaluator(output=None, size=2):
  pairs = [("a b", "negative"), ("c", "positive")]
  task = Lists(validation=pairs, labels=("negative", "positive"))
  vocabulary = types.SimpleNamespace(encode=lambda text: [2 + (text > "o")], eos_id=1)
  return evaluate.Evaluator(
    Toy(), CrossEntropy(), Layout(3, U), vocabulary, task, output, size
  )


def test_the_loss_of_a_split_is_that_of_its_tokens(params):
  draw = np.random.default_rng(4)
  examples = [
    {"inputs": [1], "targets": draw.integers(1, V, count)} for count in (5, 1, 3, 2, 4)
  ]
  scores = [toy_evaluator(size=n).loss(params, examples) for n in (2, 5)]
  near(scores[0], scores[1])
  rows = [Layout(3, U).convert(example) for example in examples]
  inputs = np.concatenate([row["decoder_inputs"] for row in rows])
  targets = np.concatenate([row["targets"] for row in rows])
  near(scores[0]["loss"], toy_losses(params, inputs, targets)[1].mean(), 1e-4)


@pytest.mark.parametrize("many", [1, 100])
def test_what_rows_give_comes_back_in_the_order_of_the_examples(monkeypatch, many):
  monkeypatch.setattr(batches, "MANY", many)
  lengths = [30, 3, 40, 16, 2]
  examples = [{"inputs": [i + 2] * n, "targets": [1]} for i, n in enumerate(lengths)]
  seen = []

  def run(batch, numbers):
    seen.append(numbers.tolist())
    return batch["inputs"].max(axis=1).tolist()

  found = evaluate.in_order(run, examples, Layout(50, U), 2)
  assert found == [2, 3, 4, 5, 6]
  order = [[4, 1], [3, 0], [2, 2]] if many == 1 else [[0, 1], [2, 3], [4, 4]]
  assert seen == order


def test_the_best_metric_must_be_one_that_evaluation_gives(params):
  examples = [{"inputs": [1], "targets": [2, 1]}]
  bare, choosing = toy_evaluator(), toy_evaluator(Choice())
  for evaluator, name in [
    (bare, "loss"),
    (bare, "token_accuracy"),
    (choosing, "accuracy"),
  ]:
    evaluator.check_metric(name, params, examples)
  with pytest.raises(ValueError, match="'accuracy'.*'cross_entropy'.*gin/outputs/"):
    bare.check_metric("accuracy", params, examples)


def test_batches_must_divide():
  over = sharding.DEFAULT.over(jax.devices()[:1])
  sharding.check_batch(6, 3, over)
  with pytest.raises(ValueError, match="`BATCH_SIZE` is 7.*multiple of 3"):
    sharding.check_batch(7, 3, over)
  with pytest.raises(ValueError, match="`MICROBATCHES` must be at least 1"):
    sharding.check_batch(7, 0, over)

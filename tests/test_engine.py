"""Optimisers, the step, the loop, checkpoints, the log: mostly on toys."""

import dataclasses
import json
import threading
import types

import jax
import jax.numpy as jnp
import method_tools
import numpy as np
import optax
import pytest
from clu import metrics as clu_metrics

from prompt_tuning.core import trainable as branches
from prompt_tuning.core.format import FORM
from prompt_tuning.core.forward import Forward
from prompt_tuning.core.ids import MARKS
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.core.prompt import Prompt
from prompt_tuning.data import batches
from prompt_tuning.data.features import Layout
from prompt_tuning.data.lists import Lists
from prompt_tuning.engine import (
  checkpoint,
  evaluate,
  fit,
  loop,
  optimizer,
  report,
  sharding,
  state,
  step,
)
from prompt_tuning.engine.log import Log
from prompt_tuning.engine.ready import places
from prompt_tuning.engine.recipe import Recipe
from prompt_tuning.inits import uniform
from prompt_tuning.interop.load import load
from prompt_tuning.objectives import objective as objectives
from prompt_tuning.objectives.cross_entropy import CrossEntropy, token_losses
from prompt_tuning.objectives.objective import Weighted
from prompt_tuning.outputs.choice import Choice
from prompt_tuning.parameterisers.dense import Dense

B, U, V = 4, 5, 11


class Same:
  """A backbone whose states are its logits."""

  spec = types.SimpleNamespace(vocabulary=V, ids=MARKS)
  format = FORM

  @staticmethod
  def logits(params, states):
    return states

  @staticmethod
  def run(params, batch, bias, key):
    logits_BUV = params["table"][batch["decoder_inputs"]]
    if key is not None:
      logits_BUV *= jax.random.uniform(key)
    return logits_BUV + bias, None


@dataclasses.dataclass(frozen=True)
class Toy:
  """A model whose logits are a row of a frozen table and a trained bias."""

  segments: int = 1
  lengths, teachers, prompt = {}, {}, None
  backbone = Same()

  def logical_axes(self, params):
    return {}

  def init_prompt(self, key, backbone_params, encode):
    return {"bias": jax.random.uniform(key, (V,))}

  def prompted(self, params, batch, key=None):
    assert ("segment_ids" in batch) == (self.segments > 1)
    return params["prompt"]["bias"], {}

  def logits(self, params, batch):
    return Forward(self, params, batch).states


class Recorder:
  """Remembers what a run says."""

  def __init__(self):
    self.lines, self.said, self.steps = [], [], []

  def write(self, step, split, values):
    self.lines.append((step, split, dict(values)))

  def step(self, step):
    self.steps.append(step)

  def say(self, text):
    self.said.append(text)


@pytest.fixture
def params():
  draw = np.random.default_rng(5)
  return {
    "prompt": {"bias": jnp.asarray(draw.normal(size=V), jnp.float32)},
    "backbone": {"table": jnp.asarray(draw.normal(size=(V, V)), jnp.float32)},
  }


@pytest.fixture
def batch():
  draw = np.random.default_rng(0)
  targets = draw.integers(1, V, (B, U)).astype(np.int32)
  # Rows of 5, 4, 1 and 2 targets: the parts of a batch do not weigh the same.
  targets *= np.arange(U)[None] < np.array([5, 4, 1, 2])[:, None]
  inputs = draw.integers(0, V, (B, U))
  return {"inputs": inputs, "targets": targets, "decoder_inputs": inputs}


def near(actual, expected, rtol=1e-5, atol=1e-6):
  jax.tree.map(
    lambda a, e: np.testing.assert_allclose(a, e, rtol=rtol, atol=atol),
    actual,
    expected,
  )


def toy_losses(params, inputs, targets):
  """(logits, cross-entropy of each target) of the toy, by numpy."""
  table, bias = params["backbone"]["table"], params["prompt"]["bias"]
  logits = np.asarray(table)[inputs] + np.asarray(bias)
  chosen = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
  return logits, np.log(np.exp(logits).sum(-1)) - chosen


def same(actual, expected):
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


# ---- the objective, against numpy


@pytest.mark.parametrize("few", [2])
def test_logits_made_in_parts_change_nothing(few):
  case = method_tools.case("prompt_tuning")
  batch, (trains, frozen) = case.batch(), case.split
  rows, wide = batch["targets"].shape
  found = {}
  for most in (2**25, few * rows * method_tools.V):
    objective = CrossEntropy(0.01, 0.1, most)
    run = step.gradients(case.model, objective, 1)
    program = jax.make_jaxpr(run)(trains, frozen, batch, None)
    # Half of the logits or more are nowhere in the program.
    whole = f"[{rows},{wide},{method_tools.V}]"
    assert (whole in str(program)) == (most == 2**25)
    found[most] = jax.jit(run)(trains, frozen, batch, None)
  near(*found.values(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_token_losses(z_loss, smoothing):
  logits = np.random.default_rng(1).normal(size=(2, 3, V))
  targets = np.random.default_rng(2).integers(0, V, (2, 3))
  z = np.exp(logits).sum(-1)
  expected = np.zeros((2, 3))
  for b, u in np.ndindex(2, 3):
    wish = np.full(V, smoothing / (V - 1))
    wish[targets[b, u]] = 1 - smoothing
    log_p = logits[b, u] - np.log(z[b, u])
    entropy = -sum(w * np.log(w) for w in wish if w > 0)
    expected[b, u] = -(wish * log_p).sum() - entropy + z_loss * np.log(z[b, u]) ** 2
  compiled = jax.jit(token_losses, static_argnums=(2, 3))
  loss, plain = compiled(logits, targets, z_loss, smoothing)
  near(loss, expected, 1e-4)
  chosen = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
  near(plain, np.log(z) - chosen, 1e-4)


def test_the_objective_counts_real_targets_alone(params, batch):
  smooth = CrossEntropy(z_loss=0.1)
  both = Weighted([CrossEntropy(), smooth], [1.0, 0.5])

  @jax.jit
  def terms(batch):
    found = objectives.terms(both, Forward(Toy(), params, batch))
    return *found, objectives.mean(both, found)

  plain, smoothed, weighted = terms(batch)
  real = batch["targets"] > 0
  assert float(plain.weight) == real.sum() == 12
  logits, losses = toy_losses(params, batch["decoder_inputs"], batch["targets"])
  near(plain.total, losses[real].sum(), 1e-4)
  right = (logits.argmax(-1) == batch["targets"])[real].sum()
  near(plain.metrics["token_accuracy"], (right, 12.0))
  near(weighted, (plain.total + 0.5 * smoothed.total) / 12)
  empty, _, mean = terms({**batch, "targets": np.zeros((B, U), np.int32)})
  assert (float(empty.total), float(empty.weight), float(mean)) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("bad", [{"z_loss": -1}, {"label_smoothing": 1.0}])
def test_wrong_objectives_are_refused(bad):
  with pytest.raises(ValueError, match=f"CrossEntropy.{next(iter(bad))}"):
    CrossEntropy(**bad)
  with pytest.raises(ValueError, match="one weight for each"):
    Weighted([CrossEntropy()], [])


# ---- optimisers

PROMPT = {"prompt": {"table": jnp.full((128, 256), 0.5)}}


def moved(rule, tree, gradients):
  """The tree after steps with given gradients."""
  transform = optimizer.Optimizer(rule, optimizer.constant(0.3)).build(tree)

  @jax.jit
  def step(tree, slots, gradient):
    updates, slots = transform.update(gradient, slots, tree)
    return optax.apply_updates(tree, updates), slots

  slots = transform.init(tree)
  for gradient in gradients:
    tree, slots = step(tree, slots, gradient)
  return tree


def test_adafactor_keeps_a_second_moment_for_every_number():
  def shapes(rule):
    build = optimizer.Optimizer(rule, optimizer.constant(0.3)).build(PROMPT)
    return {leaf.shape for leaf in jax.tree.leaves(build.init(PROMPT))}

  assert (128, 256) in shapes(optimizer.Adafactor())
  assert not {(128,), (256,)} & shapes(optimizer.Adafactor())
  assert {(128,), (256,)} <= shapes(optimizer.Adafactor(factored=True))
  assert (128, 256) not in shapes(optimizer.Adafactor(factored=True))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_adafactors_first_update_has_the_size_of_the_rate(scale):
  normal = np.random.default_rng(1).normal(size=(9, 4)).astype(np.float32)
  gradient = {"prompt": {"table": scale * normal}}
  tree = {"prompt": {"table": jnp.zeros((9, 4))}}
  after = moved(optimizer.Adafactor(), tree, [gradient])["prompt"]["table"]
  near(np.sqrt(np.mean(np.asarray(after) ** 2)), 0.3)
  near(after, -0.3 * np.sign(normal))
  scaled = moved(optimizer.Adafactor(parameter_scale=True), PROMPT, [PROMPT])
  near(scaled["prompt"]["table"], PROMPT["prompt"]["table"] * 0.7)


def test_adafactor_against_its_equations():
  """Shazeer & Stern, 2018, algorithm 4 without factors: decay 1 - t^-0.8, clipping."""
  draw = np.random.default_rng(3)
  gradients = [draw.normal(size=(3, 2)) * size for size in (1.0, 5.0, 0.1)]
  weights, moment = np.ones((3, 2)), np.zeros((3, 2))
  for t, gradient in enumerate(gradients, 1):
    decay = 1 - t**-0.8
    moment = decay * moment + (1 - decay) * gradient**2
    update = gradient / np.sqrt(moment)
    update /= max(1.0, np.sqrt((update**2).mean()))
    weights = weights - 0.3 * update - 0.01 * weights
  tree = {"prompt": jnp.ones((3, 2))}
  rule = optimizer.Adafactor(weight_decay=0.01)
  steps = [{"prompt": jnp.asarray(g, jnp.float32)} for g in gradients]
  near(moved(rule, tree, steps)["prompt"], weights, 1e-4)


def test_weight_decay_is_of_the_rate_in_adamw_alone():
  still = jax.tree.map(jnp.zeros_like, PROMPT)
  after = moved(optimizer.Adafactor(weight_decay=0.1), PROMPT, [still])
  near(after["prompt"]["table"], PROMPT["prompt"]["table"] * 0.9)
  after = moved(optimizer.AdamW(weight_decay=0.1), PROMPT, [still])
  near(after["prompt"]["table"], PROMPT["prompt"]["table"] * (1 - 0.3 * 0.1))


def test_rates_of_branches():
  tree = {"prompt": {"a": {"x": jnp.zeros(3)}, "ab": jnp.zeros(3), "c": jnp.zeros(3)}}
  ones = jax.tree.map(jnp.ones_like, tree)
  rates = {"prompt": 0.1, "prompt/a": 0.2, "prompt/c": 0.0}
  rule = optimizer.Optimizer(
    optimizer.Adafactor(),
    optimizer.constant(0.3),
    branch_schedules={k: optimizer.constant(rate) for k, rate in rates.items()},
  )
  transform = rule.build(tree)
  updates, slots = transform.update(ones, transform.init(tree), tree)
  near(updates["prompt"]["a"]["x"], np.full(3, -0.2))
  near(updates["prompt"]["ab"], np.full(3, -0.1))
  near(updates["prompt"]["c"], np.zeros(3))
  only = dataclasses.replace(rule, branch_schedules={"prompt/a": rule.schedule})
  only = dataclasses.replace(only, schedule=optimizer.constant(0.0)).build(tree)
  updates, _ = only.update(ones, only.init(tree), tree)
  near(updates["prompt"]["a"]["x"], np.full(3, -0.3))
  near(updates["prompt"]["ab"], np.zeros(3))
  wrong = dataclasses.replace(rule, branch_schedules={"prompt/b": rule.schedule})
  with pytest.raises(ValueError, match="'prompt/b', which holds no parameter"):
    wrong.build(tree)


def test_clipping_is_by_the_global_norm():
  tree = {"prompt": {"x": jnp.zeros(1), "y": jnp.zeros(1)}}
  gradient = {"prompt": {"x": jnp.array([3.0]), "y": jnp.array([4.0])}}
  clipped = optimizer.Optimizer(optax.sgd, optimizer.constant(0.5), clip_norm=1.0)
  transform = clipped.build(tree)
  updates, _ = transform.update(gradient, transform.init(tree), tree)
  near(updates, {"prompt": {"x": np.array([-0.3]), "y": np.array([-0.4])}})


@pytest.mark.parametrize(
  ("schedule", "expected"),
  [
    (optimizer.constant(2.0), {0: 2.0, 9: 2.0}),
    (optimizer.warmup_linear(2.0, 4, 12), {0: 0.0, 2: 1.0, 4: 2.0, 8: 1.0, 12: 0.0}),
    (optimizer.warmup_cosine(2.0, 4, 12), {0: 0.0, 2: 1.0, 4: 2.0, 8: 1.0, 12: 0.0}),
    (optimizer.inverse_square_root(2.0, 4), {0: 2.0, 4: 2.0, 16: 1.0}),
  ],
)
def test_schedules(schedule, expected):
  found = {number: float(schedule(number)) for number in expected}
  assert found == pytest.approx(expected, abs=1e-6)


# ---- the step


def test_microbatches_add_up_to_the_whole_batch(params, batch):
  trains, frozen = branches.split(params, ("prompt",))
  whole, two, four = (
    jax.jit(step.gradients(Toy(), CrossEntropy(), parts))(trains, frozen, batch, None)
    for parts in (1, 2, 4)
  )
  near(two, whole)
  near(four, whole)


def stepper(params, schedule=None, **settings):
  """(compiled step, first state, frozen)."""
  trains, frozen = branches.split(params, ("prompt",))
  schedule = schedule or optimizer.constant(0.3)
  transform = optimizer.Optimizer(optimizer.Adafactor(), schedule).build(trains)
  run = step.train_step(Toy(), CrossEntropy(), transform, **settings)
  return jax.jit(run), state.create(trains, transform), frozen


def test_a_step_moves_what_trains_and_counts(params, batch):
  run, begin, frozen = stepper(params, dropout=False)
  after, metrics = run(begin, frozen, batch, jax.random.key(0))
  assert int(after.step) == 1
  moved_by = after.trainable["prompt"]["bias"] - params["prompt"]["bias"]
  assert (np.abs(moved_by) > 0.01).all()
  # clu's metrics weigh batches by their targets.
  fewer = {**batch, "targets": np.where(np.arange(B)[:, None] < 1, batch["targets"], 0)}
  _, more = run(after, frozen, fewer, jax.random.key(0))
  assert all(isinstance(m, clu_metrics.Average) for m in more.values())
  both = step.merge_metrics(step.merge_metrics(None, metrics), more)
  left, right = float(metrics["loss"].compute()), float(more["loss"].compute())
  near(both["loss"].compute(), (12 * left + 5 * right) / 17)
  near(
    both["gradient_norm"].compute(),
    (metrics["gradient_norm"].compute() + more["gradient_norm"].compute()) / 2,
  )
  assert float(both["bad_steps"].compute()) == 0


def test_dropout_is_folded_from_the_step(params, batch):
  run, begin, frozen = stepper(params, dropout=True)
  key = jax.random.key(5)
  first, loss = run(begin, frozen, batch, key)
  again, same_loss = run(begin, frozen, batch, key)
  same(first.trainable, again.trainable)
  later = begin.replace(step=jnp.int32(3))
  assert float(run(later, frozen, batch, key)[1]["loss"].compute()) != pytest.approx(
    float(loss["loss"].compute())
  )
  still, _, _ = stepper(params, dropout=False)
  plain = still(begin, frozen, batch, key)[1]["loss"].compute()
  assert float(plain) != pytest.approx(float(same_loss["loss"].compute()))


@pytest.mark.parametrize("fault", ["loss", "rate"])
def test_a_bad_step_changes_nothing(params, batch, fault):
  schedule = optimizer.constant(1e38) if fault == "rate" else None
  if fault == "loss":
    params["backbone"]["table"] = params["backbone"]["table"].at[0, 0].set(np.inf)
    batch["decoder_inputs"][0, 0] = 0
  run, begin, frozen = stepper(params, schedule, dropout=False)
  after, metrics = run(begin, frozen, batch, jax.random.key(0))
  same((after.trainable, after.optimizer), (begin.trainable, begin.optimizer))
  assert int(after.step) == 1
  assert float(metrics["bad_steps"].compute()) == 1


# ---- the loop


def plain_run(plan, scores=None, begin=0, best=None, losses=None, data=99, save=None):
  """A run whose step only counts: what was evaluated, kept, saved and said."""
  seen = types.SimpleNamespace(evaluated=[], kept=[], saved=[], recorder=Recorder())
  average = clu_metrics.Average

  def count(now, frozen, batch, key):
    loss = jnp.float32(batch["loss"][0])
    bad = jnp.float32(~np.isfinite(loss))
    metrics = {"loss": average(loss, 1), "bad_steps": average(bad, 1)}
    return now.replace(step=now.step + 1), metrics

  def evaluate_state(now):
    seen.evaluated.append(int(now.step))
    return scores[len(seen.evaluated) - 1]

  def save_state(now):
    seen.saved.append(int(now.step))
    if save is not None:
      save(now)

  losses = losses or {}
  batches = (
    {"loss": np.full(1, losses.get(number, float(number)), np.float32)}
    for number in range(begin + 1, data + 1)
  )
  seen.state, seen.best = loop.run(
    count,
    state.TrainState(jnp.int32(begin), {}, {}),
    {},
    batches,
    jax.random.key(0),
    plan,
    dict,
    seen.recorder,
    optimizer.constant(0.25),
    evaluate=evaluate_state if scores else None,
    save=save_state,
    keep=lambda now, found: seen.kept.append((int(now.step), found)),
    best=best,
  )
  return seen


def test_what_is_due_when():
  scores = [{"loss": 3.0}, {"loss": 2.0}, {"loss": 1.0}]
  seen = plain_run(loop.Plan(7, 2, 3, 4), scores)
  assert seen.evaluated == [3, 6, 7]
  assert seen.saved == [4, 7]
  trains = {n: values for n, split, values in seen.recorder.lines if split == "train"}
  # A line is the mean since the line before: losses are their steps' numbers.
  losses = {n: values["loss"] for n, values in trains.items()}
  assert losses == {2: 1.5, 3: 3.0, 4: 4.0, 6: 5.5, 7: 7.0}
  assert all(values["learning_rate"] == 0.25 for values in trains.values())
  assert "bad_steps" not in trains[2]
  assert seen.recorder.steps == [1, 2, 3, 4, 5, 6, 7]
  only_at_the_end = plain_run(loop.Plan(3, 0, 0, 0), [{"loss": 1.0}])
  assert (only_at_the_end.evaluated, only_at_the_end.saved) == ([3], [3])


def test_the_best_by_metric_is_kept():
  values = [50.0, 70.0, float("nan"), 70.0, 60.0]
  scores = [{"accuracy": value, "loss": 9.0 - i} for i, value in enumerate(values)]
  by_accuracy = plain_run(loop.Plan(5, 0, 1, 0, "accuracy"), scores)
  assert [number for number, _ in by_accuracy.kept] == [1, 2]
  assert by_accuracy.best == loop.Best(2, scores[1])
  by_loss = plain_run(loop.Plan(5, 0, 1, 0, "loss"), scores)
  assert [number for number, _ in by_loss.kept] == [1, 2, 3, 4, 5]
  resumed = plain_run(
    loop.Plan(5, 0, 1, 0, "accuracy"), scores, 2, loop.Best(1, {"accuracy": 65.0})
  )
  assert [number for number, _ in resumed.kept] == [4]
  # A score that is never given (its metric fails, say) makes no step the best.
  assert not plain_run(loop.Plan(5, 0, 1, 0, "f1"), scores).kept


def test_patience():
  scores = [{"loss": value} for value in (3.0, 2.0, 2.5, 2.1, 1.0)]
  seen = plain_run(loop.Plan(20, 0, 2, 5, patience=2), scores)
  assert seen.evaluated == [2, 4, 6, 8]
  assert int(seen.state.step) == 8
  assert seen.best == loop.Best(4, scores[1])
  assert seen.recorder.said == ["Stopped at step 8: no better loss since step 4."]
  # The same command again finds the run finished.
  again = plain_run(loop.Plan(20, 0, 2, 5, patience=2), scores, 8, seen.best)
  assert (again.evaluated, int(again.state.step)) == ([], 8)
  assert "best is step 4" in again.recorder.said[0]
  # Enough patience.
  assert plain_run(loop.Plan(10, 0, 2, 0, patience=3), scores).best.step == 10


@pytest.mark.parametrize("name", ["steps", "log_period", "patience"])
def test_wrong_plans_are_refused(name):
  with pytest.raises(ValueError, match=f"`{name}` must not be negative, got -1"):
    loop.Plan(**{"steps": 1, name: -1})


def test_divergence_stops_before_anything_is_saved():
  with pytest.raises(loop.DivergedError) as caught:
    plain_run(loop.Plan(9, 3, 0, 2), losses={5: np.nan}, save=SAVED.append)
  message = str(caught.value)
  assert "at or before step 6" in message
  assert "learning rate 0.25" in message and "LEARNING_RATE" in message
  assert [int(now.step) for now in SAVED] == [2, 4]


SAVED = []


def test_data_that_end_too_early():
  with pytest.raises(ValueError, match="training data ended at step 3 of 5"):
    plain_run(loop.Plan(5), data=3)


def test_a_failed_save_ends_the_run_and_its_thread():
  def full(now):
    raise OSError(28, "No space left on device")

  before = threading.active_count()
  with pytest.raises(OSError, match="No space left"):
    plain_run(loop.Plan(5, 0, 0, 2), save=full)
  assert threading.active_count() == before


# ---- evaluation


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


# ---- whole runs


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
    Toy(recipe.pack_segments),
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


# ---- checkpoints


@pytest.fixture
def saved(tmp_path):
  """(folder, the state that was saved at steps 2 and 4)."""
  tree = {"prompt": {"a": jnp.arange(3.0), "b": jnp.ones((2, 2))}}
  # Slots of masked branches are no arrays.
  rule = optimizer.Optimizer(
    optimizer.Adafactor(),
    optimizer.constant(0.3),
    branch_schedules={"prompt/a": optimizer.constant(0.1)},
  )
  begin = state.create(tree, rule.build(tree))
  store = checkpoint.Checkpoints(tmp_path / "checkpoints")
  for number in (1, 2, 4):
    store.save(begin.replace(step=jnp.int32(number)))
  store.close()
  return tmp_path / "checkpoints", begin


def test_checkpoints_come_back_whole(saved):
  folder, begin = saved
  assert sorted(path.name for path in folder.iterdir()) == ["2", "4"]
  store = checkpoint.Checkpoints(folder)
  assert store.newest() == 4
  nothing = jax.tree.map(jnp.zeros_like, begin)
  same(store.restore(nothing), begin.replace(step=jnp.int32(4)))
  assert int(store.restore(nothing, 2).step) == 2
  store.close()


@pytest.mark.parametrize("left", [(), ("_CHECKPOINT_METADATA",), ("default",)])
def test_unfinished_checkpoints_are_ignored(saved, caplog, left):
  folder, begin = saved
  for path in (folder / "4").iterdir():
    if path.name not in left:
      path.rename(folder.parent / path.name)
  (folder / "6.orbax-checkpoint-tmp-1").mkdir()
  store = checkpoint.Checkpoints(folder)
  warned = [r.getMessage() for r in caplog.records if "Unfinished" in r.getMessage()]
  assert len(warned) == 2
  assert "checkpoints/4, now unfinished-4" in warned[0]
  assert "6.orbax-checkpoint-tmp-1" in warned[1]
  assert store.newest() == 2
  # Its step can be saved again.
  store.save(store.restore(begin).replace(step=jnp.int32(4)))
  store.close()
  store = checkpoint.Checkpoints(folder)
  assert store.newest() == 4
  store.close()


def test_checkpoints_that_do_not_fit_are_refused(saved):
  folder, begin = saved
  store = checkpoint.Checkpoints(folder)
  other = begin.replace(trainable={"prompt": {"a": jnp.zeros(3), "c": jnp.ones(2)}})
  with pytest.raises(ValueError, match="checkpoints/4'.*(?s:.*)") as caught:
    store.restore(other)
  # What it lacks and what it adds.
  assert "trainable.prompt.c" in str(caught.value).replace("']['", ".")
  assert "trainable.prompt.b" in str(caught.value).replace("']['", ".")
  (folder / "4" / "default" / "manifest.ocdbt").write_bytes(b"x")
  with pytest.raises(ValueError, match="cannot be restored.*Remove that folder"):
    store.restore(begin)
  store.close()


# ---- the log, the report


def test_log_lines(tmp_path, capsys):
  log = Log(tmp_path / "run", 4, tensorboard=False)
  log.write(2, "train", {"loss": 1.5})
  log.write(4, "validation", {"loss": 1.25, "accuracy": 50.0})
  log.step(4)
  log.close()
  lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line) for line in lines] == [
    {"step": 2, "split": "train", "loss": 1.5},
    {"step": 4, "split": "validation", "loss": 1.25, "accuracy": 50.0},
  ]
  assert "step 4/4 validation: loss 1.25  accuracy 50" in capsys.readouterr().out


def test_a_resumed_log_repeats_no_step(tmp_path):
  path = tmp_path / "metrics.jsonl"
  lines = [json.dumps({"step": n, "split": "train", "loss": 1.0}) for n in (1, 2, 3)]
  path.write_text("\n".join(lines) + '\n{"step": 4, "spl')
  log = Log(tmp_path, 9, first=2, tensorboard=False, quiet=True)
  log.write(3, "train", {"loss": 0.5})
  log.close()
  found = [json.loads(line) for line in path.read_text().splitlines()]
  assert [(line["step"], line["loss"]) for line in found] == [(1, 1), (2, 1), (3, 0.5)]
  assert list(tmp_path.iterdir()) == [path]


def test_the_report_lists_every_parameter(tmp_path, tiny_folder):
  loaded = load(tiny_folder)
  prompt = Prompt(3, Dense(uniform.symmetric(0.5)), "encoder.input")
  model = PromptedModel(loaded.backbone, prompt)
  recipe = Recipe(
    ("prompt",), None, None, None, sharding=sharding.Sharding(rules=[("batch", "data")])
  )
  place, transform = recipe.sharding.over(), optimizer.AdamW()(lambda step: 0.1)
  params = {"backbone": loaded.params, "prompt": model.prompt_shapes(loaded.params)}
  found = places(model, params, ("prompt",), transform, place)
  text = report.info_text(model, params, recipe, transform, place, found)
  (tmp_path / "model-info.txt").write_text(text)
  lines = (tmp_path / "model-info.txt").read_text().splitlines()
  frozen, trains = branches.count(loaded.params), 3 * 16
  assert lines[0] == f"parameters {frozen + trains:,}, of which {trains:,} train"
  rows = [line for line in lines if line.startswith(("trains", "frozen"))]
  assert len(rows) == len(jax.tree.leaves(loaded.params)) + 1
  (row,) = [row for row in rows if row.startswith("trains")]
  assert "prompt/" in row and "[1x3x16]" in row
  assert any("embed" in row and "vocab" in row for row in rows)
  report.learning_curve(tmp_path)
  assert not (tmp_path / "learning-curve.png").exists()

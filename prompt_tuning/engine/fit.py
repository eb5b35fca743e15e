"""One training run from its parts: data in, trained branches out.

`train.py` and `api.tune` both come here; neither knows what the other adds (a folder
with checkpoints, or nothing on disk).
"""

import dataclasses
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from prompt_tuning.core import trainable as branches
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.data import batches as batching
from prompt_tuning.data.features import Layout
from prompt_tuning.engine import loop, product, sharding, state, step
from prompt_tuning.engine.checkpoint import Checkpoints
from prompt_tuning.engine.evaluate import Evaluator
from prompt_tuning.engine.optimizer import Optimizer

# A split larger than this is streamed and not held in memory.
IN_MEMORY = 400_000


@dataclasses.dataclass(frozen=True)
class Recipe:
  """The numbers and choices of a run.

  Attributes:
    trainable: branches that train, such as ("prompt",).
    objective: what is lowered. optimizer: how.
    plan: how long, and what when.
    batch_size: B. eval_batch_size: rows of an evaluation batch.
    eval_examples: validation examples used during training; None for all.
    microbatches: parts a batch is divided into. pack_segments: S; 1 pads.
    seed: of the prompt, the order and the dropout.
    dropout: whether dropout layers are active in training.
  """

  trainable: Sequence[str]
  objective: Any
  optimizer: Optimizer
  plan: loop.Plan
  batch_size: int = 32
  eval_batch_size: int = 64
  eval_examples: int | None = None
  microbatches: int = 1
  pack_segments: int = 1
  seed: int = 0
  dropout: bool = False


@dataclasses.dataclass
class Fitted:
  """Attributes:
  params: {"backbone": ..., "prompt": ...} after the last step.
  trainable: the trained branches of the best step (the last one without validation).
  best: its step and scores.
  """

  params: Any
  trainable: Any
  best: loop.Best


def read(task: Any, vocabulary: Any, split: str, limit: int | None = None) -> list:
  """The examples of a split in order, at most `limit`.

  Raises:
    ValueError: if the split is empty.
  """
  if task.streams:
    found = task.dataset(vocabulary, split).as_numpy_iterator()
    examples = list(itertools.islice(found, limit))
  else:
    examples = task.tokens(vocabulary, split, limit)
  if not examples:
    raise ValueError(f"The split {split!r} of task {task.name!r} holds no examples.")
  return examples


def training_source(
  task: Any, vocabulary: Any, layout: Layout, seed: int
) -> Sequence[Any] | Callable[[], Any]:
  """The training examples in memory, or a function that opens their stream."""

  def stream():
    shuffled = task.dataset(vocabulary, "train", shuffle=True, seed=seed, epochs=None)
    return shuffled.as_numpy_iterator()

  if task.streams:
    return stream
  examples = read(task, vocabulary, "train", IN_MEMORY + 1)
  if len(examples) > IN_MEMORY:
    return stream
  batching.check_lengths(examples, layout, "train")
  return examples


def fit(
  model: PromptedModel,
  backbone_params: Any,
  vocabulary: Any,
  task: Any,
  layout: Layout,
  recipe: Recipe,
  output: Any,
  recorder: loop.Recorder,
  checkpoints: Checkpoints | None = None,
  keep: Callable[[Any, Any, loop.Best], None] | None = None,
  best: loop.Best | None = None,
) -> Fitted:
  """Trains, evaluates, and keeps the best.

  Args:
    model: backbone and prompt. backbone_params: weights, as loaded.
    vocabulary: of the backbone. task: `data.task.TextTask`.
    layout: of its examples. recipe: numbers and choices. output: how predictions are
      made (`outputs/`), or None for the loss alone.
    recorder: metrics and words.
    checkpoints: saved to and resumed from, or None.
    keep: called with (all parameters, trained branches, best) at each best score.
    best: the best of the part of this run that went before.
  """
  over = sharding.mesh()
  sharding.check_batch(recipe.batch_size, recipe.microbatches, over)
  sharding.check_batch(recipe.eval_batch_size, 1, over)
  params = initial_params(model, backbone_params, vocabulary, recipe.seed)
  if recipe.trainable:
    branches.check(params, recipe.trainable)
  trainable, frozen = branches.split(params, recipe.trainable)
  trainable = jax.tree.map(lambda x: jnp.array(x, jnp.float32), trainable)
  source = None
  if recipe.plan.steps:
    source = training_source(task, vocabulary, layout, recipe.seed)
  validation = None
  if "validation" in task.splits:
    validation = read(task, vocabulary, "validation", recipe.eval_examples)
    batching.check_lengths(validation, layout, "validation")
  evaluator = Evaluator(
    model, recipe.objective, layout, vocabulary, task, output, recipe.eval_batch_size
  )
  place = sharding.replicated(over)
  frozen = jax.device_put(frozen, place)

  def scores(trained: Any) -> loop.Scores:
    return evaluator.scores(branches.merge(trained, frozen), validation)

  if not recipe.plan.steps:
    found = scores(trainable) if validation else {}
    if found:
      recorder.write(0, "validation", found)
    return Fitted(params, trainable, loop.Best(0, found or None))
  transform = recipe.optimizer.build(trainable)
  begin = jax.device_put(state.create(trainable, transform), place)
  if checkpoints is not None and checkpoints.newest() is not None:
    begin = checkpoints.restore(begin)
    recorder.say(f"Resumed from step {int(begin.step)}.")
  kept: dict[str, Any] = {"trainable": jax.device_get(begin.trainable)}

  def keep_best(now: state.TrainState, found: loop.Scores) -> None:
    kept["trainable"] = jax.device_get(now.trainable)
    if keep is not None:
      whole = branches.merge(kept["trainable"], frozen)
      keep(whole, kept["trainable"], loop.Best(int(now.step), found))

  final, best = loop.run(
    jax.jit(
      step.train_step(
        model, recipe.objective, transform, recipe.microbatches, recipe.dropout
      ),
      donate_argnums=0,
    ),
    begin,
    frozen,
    batching.train_batches(
      source,
      layout,
      recipe.batch_size,
      recipe.seed,
      int(begin.step),
      recipe.pack_segments,
    ),
    jax.random.key(recipe.seed),
    recipe.plan,
    over,
    recorder,
    recipe.optimizer.schedule,
    evaluate=(lambda now: scores(now.trainable)) if validation else None,
    save=None if checkpoints is None else checkpoints.save,
    keep=keep_best,
    best=best,
  )
  if best.scores is None:
    kept["trainable"] = jax.device_get(final.trainable)
    if keep is not None:
      whole = branches.merge(final.trainable, frozen)
      keep(whole, kept["trainable"], loop.Best(int(final.step)))
    if keep is not None:
      keep(kept["trainable"], int(final.step), {})
  return Fitted(branches.merge(final.trainable, frozen), kept["trainable"], best)


def initial_params(
  model: PromptedModel, backbone_params: Any, vocabulary: Any, seed: int
) -> dict[str, Any]:
  """{"backbone": ..., "prompt": ...} before the first step."""
  key = jax.random.fold_in(jax.random.key(seed), 1)

  def encode(text: str) -> list[int]:
    return [int(piece) for piece in vocabulary.encode(text)]

  prompt = model.init_prompt(key, backbone_params, encode)
  total, table = branches.count(prompt), branches.count(backbone_params)
  logging.info("prompt %s numbers, backbone %s", total, table)
  params = {"backbone": backbone_params}
  return {**params, "prompt": prompt} if prompt else params


def drops(prompt: Any) -> bool:
  """Whether some word of a prompt has a dropout rate above 0."""
  if isinstance(prompt, (list, tuple)):
    return any(drops(item) for item in prompt)
  if not dataclasses.is_dataclass(prompt) or isinstance(prompt, type):
    return False
  for field in dataclasses.fields(prompt):
    if field.name in ("parent", "name"):
      continue
    value = getattr(prompt, field.name)
    if (field.name.endswith("dropout_rate") and value) or drops(value):
      return True
  return False


def facts(
  loaded: Any, method: str, layout: Layout, task: Any, configuration: str = ""
) -> dict[str, Any]:
  """What a product's card says, but for step and scores."""
  return {
    "method": method,
    "layout": dataclasses.asdict(layout),
    "backbone": {
      "name": loaded.name,
      "fingerprint": loaded.fingerprint,
      "width": loaded.backbone.spec.width,
      "architecture": loaded.backbone.config.to_json(),
    },
    "task": {
      "name": task.name,
      "labels": None if task.labels is None else list(task.labels),
      "metrics": list(task.metrics),
    },
    "gin": configuration,
  }


def product_of(
  model: PromptedModel, params: Any, trained: Any, card: dict[str, Any], best: loop.Best
) -> product.Product:
  """The product of a run: trained branches, and what of the prompt stayed fixed."""
  names = set(branches.flatten(trained))
  fixed = {
    name: value
    for name, value in branches.flatten({"prompt": params.get("prompt", {})}).items()
    if name not in names
  }
  scores = {name: float(value) for name, value in (best.scores or {}).items()}
  card = {**card, "step": best.step, "scores": scores}
  return product.Product(model.prompt, trained, card, branches.unflatten(fixed))

"""One training run from its parts: data in, trained branches out.

`train.py` and `api.tune` both come here; neither knows what the other adds (a folder
with checkpoints, or nothing on disk).
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

import prompt_tuning
from prompt_tuning.core import trainable as branches
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.core.randomness import streams
from prompt_tuning.data import batches as batching
from prompt_tuning.data import buckets, given, packing
from prompt_tuning.data.features import Layout
from prompt_tuning.engine import (
  codes,
  compilation,
  conventions,
  heads,
  interrupt,
  loop,
  members,
  product,
  sharding,
  state,
  step,
  terms,
)
from prompt_tuning.engine.checkpoint import Checkpoints
from prompt_tuning.engine.evaluate import Evaluator
from prompt_tuning.engine.examples import Part, training_source, validation_part
from prompt_tuning.engine.optimizer import Optimizer
from prompt_tuning.engine.sharding import DEFAULT, Sharding


@dataclasses.dataclass(frozen=True)
class Recipe:
  """The numbers and choices of a run.

  Attributes:
    trainable: branches that train, such as ("prompt",).
    objective: what is lowered. optimizer: how.
    plan: how long, and what when.
    batch_size: B. eval_batch_size: rows of an evaluation batch.
    eval_examples: validation examples used during training, drawn at random but the
      same in every run; None for all.
    microbatches: parts a batch is divided into. pack_segments: S; 1 pads.
    buckets: lengths of batches, chosen by the data's lengths; not with packed rows.
    seed: of the prompt, the order and the dropout.
    dropout: whether dropout layers are active in training.
    sharding: the mesh and what is divided over it.
    cache_codes: make the frozen encoder's codes once, see `engine.codes`.
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
  buckets: int = 1
  seed: int = 0
  dropout: bool = False
  sharding: Sharding = DEFAULT
  cache_codes: bool = False


@dataclasses.dataclass
class Fitted:
  """Attributes:
  params: {"backbone": ..., "prompt": ...} after the last step.
  trainable: the trained branches of the best step (of the last one without validation,
    or where a run that goes on finds no better one: that one's are in its folder).
  best: its step and scores.
  """

  params: Any
  trainable: Any
  best: loop.Best


@dataclasses.dataclass(frozen=True)
class Ready:
  """A run whose data are read and whose parts fit each other; nothing is compiled.

  Attributes:
    model, layout, recipe: as given to `prepare`.
    params: all parameters before the first step.
    source: training examples, see `training_source`; None where nothing trains.
    validation: its examples, or None where the task has no such split.
    evaluator: of the model on the task.
    transform: the optimiser of the trainable branches; None where nothing trains.
    buckets: lengths of training batches; empty for one length.
    place: the mesh and its rules. places: where each parameter lives.
  """

  model: PromptedModel
  layout: Layout
  recipe: Recipe
  params: Any
  source: Any
  validation: Part | None
  evaluator: Evaluator
  transform: Any
  place: sharding.Placement
  places: "Places"
  buckets: Sequence[int] = ()


@dataclasses.dataclass(frozen=True)
class Places:
  """Shardings: of the frozen branches, and of the state that trains.

  Attributes:
    frozen: a tree like the frozen parameters. trainable: like those that train.
    state: a `TrainState`, or None where nothing trains.
  """

  frozen: Any
  trainable: Any
  state: Any = None


def prepare(
  model: PromptedModel,
  backbone_params: Any,
  vocabulary: Any,
  task: Any,
  layout: Layout,
  recipe: Recipe,
  output: Any,
  teachers: Mapping[str, Any] | None = None,
) -> Ready:
  """Reads the data, draws the prompt, and refuses what cannot run.

  Args:
    model: backbone and prompt. backbone_params: weights, as loaded.
    vocabulary: of the backbone. task: `data.task.TextTask`.
    layout: of its examples. recipe: numbers and choices. output: how predictions are
      made (`outputs/`), or None for the loss alone.
    teachers: name -> product that the objective learns from.

  Raises:
    ValueError: for a split, an example, a branch or a metric that does not fit.
  """
  if layout.form != model.backbone.format:
    raise ValueError(
      f"`layout` is of the format {layout.form}, but the backbone reads "
      f"{model.backbone.format}. Make it with `Layout.of(model, ...)`."
    )
  place = recipe.sharding.over()
  sharding.check_batch(recipe.batch_size, recipe.microbatches, place)
  sharding.check_batch(recipe.eval_batch_size, 1, place, "EVAL_BATCH_SIZE")
  heads.check(model, recipe.objective, output, task)
  recipe = dataclasses.replace(recipe, trainable=model.trains(recipe.trainable))
  numbered = model.head is not None
  # A head has no need to spell labels.
  for member in () if numbered else members.of(task):
    batching.check_labels(member.labels, vocabulary)
  trains = recipe.plan.steps > 0
  objective = recipe.objective if trains else terms.answering(recipe.objective)
  objective = terms.bound(objective, vocabulary, task)
  recipe = dataclasses.replace(recipe, objective=objective)
  model, taught = terms.with_teachers(model, teachers or {})
  terms.check_teachers(objective, model)
  if trains and not recipe.trainable:
    raise ValueError(
      f"`TRAINABLE` is empty, but TRAIN_STEPS is {recipe.plan.steps}. Name a branch, "
      "or set TRAIN_STEPS = 0 to evaluate only."
    )
  segments = packing.useful(recipe.pack_segments, layout)
  if segments < recipe.pack_segments:
    recipe = dataclasses.replace(recipe, pack_segments=segments)
    model = dataclasses.replace(model, segments=segments)
  source = validation = None
  wanted = given.wants(model.prompt)
  if trains:
    source = training_source(task, vocabulary, layout, recipe.seed, numbered)
    source = given.checked(source, wanted, "train")
  if "validation" in task.splits:
    limit = recipe.eval_examples
    validation = validation_part(task, vocabulary, limit, numbered)
    batching.check_lengths(validation.examples, layout, "validation")
    given.checked(validation.examples, wanted, "validation")
    # A stream draws its targets from running text, where some piece may be unknown.
    if not task.streams and not numbered:
      batching.check_targets(validation.examples, vocabulary, "validation", task.labels)
  if trains and recipe.cache_codes:
    codes.check(model, recipe.trainable, callable(source))
  params = initial_params(model, backbone_params, vocabulary, recipe.seed)
  own = terms.branch(objective, model, params, recipe.seed)
  params = {**params, **taught, **own}
  recipe = dataclasses.replace(recipe, trainable=(*recipe.trainable, *own))
  if recipe.trainable:
    branches.check(params, recipe.trainable)
  # Only training packs; evaluation keeps one example a row, in order.
  alone = dataclasses.replace(model, segments=1)
  evaluator = Evaluator(
    alone,
    recipe.objective,
    layout,
    vocabulary,
    task,
    output,
    recipe.eval_batch_size,
    place,
  )
  transform = None
  if trains:
    transform = recipe.optimizer.build(branches.split(params, recipe.trainable)[0])
    if validation:
      evaluator.check_metric(recipe.plan.metric, params, validation.examples)
  return Ready(
    model,
    layout,
    recipe,
    params,
    source,
    validation,
    evaluator,
    transform,
    place,
    places(model, params, recipe.trainable, transform, place),
    _buckets(recipe, layout, source),
  )


def _buckets(recipe: Recipe, layout: Layout, source: Any) -> Sequence[int]:
  """Lengths of training batches, chosen by those of the examples."""
  if hasattr(source, "order") and (recipe.buckets > 1 or recipe.pack_segments > 1):
    raise ValueError(
      f"`PACK_SEGMENTS` is {recipe.pack_segments} and `BUCKETS` {recipe.buckets}, but "
      "the tasks of each batch are drawn for it (TaskSubset), so its rows are padded: "
      "leave both at 1."
    )
  if recipe.buckets == 1 or source is None:
    return ()
  if recipe.pack_segments > 1 or callable(source):
    raise ValueError(
      f"`BUCKETS` is {recipe.buckets}, which goes with padded rows of examples held in "
      f"memory; PACK_SEGMENTS is {recipe.pack_segments}"
      f"{' and the task is a stream' if callable(source) else ''}. Leave one out."
    )
  most, reserved = layout.inputs, layout.reserved["inputs"]
  lengths = [min(len(one["inputs"]), most) + reserved for one in source]
  return buckets.choose(lengths, recipe.buckets)


def places(
  model: PromptedModel,
  params: Any,
  trainable: Sequence[str],
  transform: Any,
  place: sharding.Placement,
) -> Places:
  """Where parameters, or what has their shapes, and optimiser slots live."""
  axes = model.logical_axes(params)
  trains, frozen = branches.split(params, trainable)
  trained = place.tree(trains, axes, trains=True)
  found = Places(place.tree(frozen, axes), trained)
  if transform is None:
    return found
  like = state_shapes(trains, transform)
  return dataclasses.replace(found, state=place.beside(like, trains, trained))


def state_shapes(trains: Any, transform: Any) -> state.TrainState:
  """Shapes of the state of branches, which train in float32."""
  wide = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), trains)
  return jax.eval_shape(lambda tree: state.create(tree, transform), wide)


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
  teachers: Mapping[str, Any] | None = None,
) -> Fitted:
  """`prepare`, `resumed`, then `run`."""
  given = model, backbone_params, vocabulary, task, layout, recipe, output
  ready = prepare(*given, teachers)
  begin = resumed(ready, checkpoints, recorder.say)
  return run(ready, recorder, checkpoints, keep, best, begin=begin)


def resumed(
  ready: Ready, checkpoints: Checkpoints | None, say: Callable[[str], None]
) -> state.TrainState | None:
  """The state of the newest checkpoint, on this run's devices; None without one."""
  if checkpoints is None or ready.transform is None:
    return None
  trains, _ = branches.split(ready.params, ready.recipe.trainable)
  like = jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    state_shapes(trains, ready.transform),
    ready.places.state,
  )
  return checkpoints.resume(like, say)


def run(
  ready: Ready,
  recorder: loop.Recorder,
  checkpoints: Checkpoints | None = None,
  keep: Callable[[Any, Any, loop.Best], None] | None = None,
  best: loop.Best | None = None,
  stop: Callable[[int], bool] = lambda step: False,
  begin: state.TrainState | None = None,
  owed: bool = False,
) -> Fitted:
  """Trains, evaluates, and keeps the best.

  Args:
    ready: of `prepare`.
    recorder: metrics and words.
    checkpoints: saved to, or None.
    keep: called with (all parameters, trained branches, best) at each best score, or
      once at the end where there is no validation.
    best: the best of the part of this run that went before.
    stop, owed: see `engine.loop.run`; `stop` is asked between batches of an evaluation
      too.
    begin: where to go on, see `resumed`; None for the first step.

  Raises:
    StoppedError: see `engine.loop.run`.
  """
  recipe, validation = ready.recipe, ready.validation
  trainable, frozen = branches.split(ready.params, recipe.trainable)
  # Copies: the state is donated to the step, the caller's arrays are not.
  trainable = jax.tree.map(lambda x: jnp.array(x, jnp.float32), trainable)
  trainable = sharding.put(trainable, ready.places.trainable)
  frozen = sharding.put(frozen, ready.places.frozen)

  def scores(trained: Any, step: int) -> loop.Scores:
    params = branches.merge(trained, frozen)
    ready.evaluator.between = functools.partial(_unless, stop, step)
    return ready.evaluator.scores(params, validation.examples, validation.numbers)

  if not recipe.plan.steps:
    try:
      found = scores(trainable, 0) if validation else {}
    except interrupt.UnfinishedError as error:
      raise interrupt.StoppedError("Told to end while evaluating.") from error
    if found:
      recorder.write(0, "validation", found)
    return Fitted(ready.params, trainable, loop.Best(0, found or None))
  if begin is None:
    begin = jax.jit(
      lambda tree: state.create(tree, ready.transform), out_shardings=ready.places.state
    )(trainable)
  else:
    recorder.say(f"Resumed from step {int(begin.step)}.")
  source = ready.source
  if recipe.cache_codes:
    parts = [source, validation.examples] if validation else [source]
    whole, size = branches.merge(begin.trainable, frozen), recipe.eval_batch_size
    between = functools.partial(_unless, stop, int(begin.step))
    try:
      parts = codes.attach(
        ready.model, whole, parts, ready.layout, size, recorder, ready.place, between
      )
    except interrupt.UnfinishedError as error:
      raise interrupt.StoppedError(
        f"Told to end at step {int(begin.step)}, before training went on."
      ) from error
    source = parts[0]
    validation = validation and dataclasses.replace(validation, examples=parts[1])
  kept: dict[str, Any] = {"trainable": ready.place.fetch(begin.trainable)}

  def keep_best(trained: Any, found: loop.Best) -> None:
    kept["trainable"] = ready.place.fetch(trained)
    if keep is not None:
      rest = {**frozen, **ready.place.fetch({k: frozen[k] for k in fixed})}
      keep(branches.merge(kept["trainable"], rest), kept["trainable"], found)

  fixed = frozen.keys() & {"prompt", "head"}
  final, best = loop.run(
    _compiled(ready),
    begin,
    frozen,
    batching.train_batches(
      source,
      ready.layout,
      recipe.batch_size,
      recipe.seed,
      int(begin.step),
      recipe.pack_segments,
      ready.buckets,
      ready.place.own_rows(recipe.batch_size),
    ),
    jax.random.key(recipe.seed),
    recipe.plan,
    functools.partial(ready.place.put, size=recipe.batch_size),
    recorder,
    recipe.optimizer.schedule,
    evaluate=(lambda now: scores(now.trainable, int(now.step))) if validation else None,
    save=None if checkpoints is None else checkpoints.save,
    keep=lambda now, found: keep_best(now.trainable, loop.Best(int(now.step), found)),
    best=best,
    stop=stop,
    owed=owed,
  )
  if best.scores is None:
    best = loop.Best(int(final.step))
    keep_best(final.trainable, best)
  return Fitted(branches.merge(final.trainable, frozen), kept["trainable"], best)


def _unless(stop: Callable[[int], bool], step: int) -> None:
  if stop(step):
    raise interrupt.UnfinishedError


def finished(ready: Ready, begin: state.TrainState, best: loop.Best) -> Fitted:
  """What a run that has nothing left to train gives."""
  _, frozen = branches.split(ready.params, ready.recipe.trainable)
  trained = ready.place.fetch(begin.trainable)
  return Fitted(branches.merge(trained, frozen), trained, best)


def _compiled(ready: Ready) -> Callable[..., Any]:
  return compiled_step(
    ready.model,
    ready.recipe,
    ready.layout,
    ready.transform,
    ready.place,
    ready.places,
  )


def compiled_step(
  model: PromptedModel,
  recipe: Recipe,
  layout: Layout,
  transform: Any,
  place: sharding.Placement,
  found: Places,
) -> Callable[..., Any]:
  """The training step of a recipe under jit; its state is donated."""
  rows = recipe.batch_size // recipe.microbatches // place.rows
  positions = rows * layout.lengths["inputs"]
  step_fn = step.train_step(
    model, recipe.objective, transform, recipe.microbatches, recipe.dropout
  )
  return jax.jit(
    place.traced(step_fn),
    donate_argnums=0,
    out_shardings=(found.state, place.replicated),
    compiler_options=compilation.options(place.platform, positions),
  )


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
  head = model.init_head(jax.random.fold_in(jax.random.key(seed), 3))
  params = {"backbone": backbone_params, "prompt": prompt, "head": head}
  return {name: tree for name, tree in params.items() if tree or name == "backbone"}


def drops(*parts: Any) -> bool:
  """Whether some word of a prompt or head draws noise while training, as dropout is."""
  return any(map(streams, parts))


def facts(
  loaded: Any,
  method: str,
  layout: Layout,
  task: Any,
  configuration: str = "",
  output: Any = None,
  recipe: Recipe | None = None,
) -> dict[str, Any]:
  """What a product's card says, but for step and scores."""
  repeat: dict[str, Any] = {}
  if recipe is not None:
    repeat = {"seed": recipe.seed, "steps": recipe.plan.steps}
    repeat["objective"] = terms.said(recipe.objective)
  return {
    "method": method,
    "layout": layout.said,
    **conventions.said(task, output),
    "backbone": {
      "name": loaded.name,
      "fingerprint": loaded.fingerprint,
      "width": loaded.backbone.spec.width,
      "family": loaded.backbone.family,
      "architecture": loaded.backbone.architecture,
    },
    "task": {
      "name": task.name,
      "labels": None if task.labels is None else list(task.labels),
      "metrics": list(task.metrics),
      "tasks": members.said(task),
    },
    "gin": configuration,
    **repeat,
    "versions": {
      "library": prompt_tuning.__version__,
      "jax": jax.__version__,
    },
  }


def product_of(
  model: PromptedModel, params: Any, trained: Any, card: dict[str, Any], best: loop.Best
) -> product.Product:
  """The product of a run: trained branches, and what of the prompt stayed fixed."""
  trained = {name: tree for name, tree in trained.items() if name != terms.BRANCH}
  names = set(branches.flatten(trained))
  fixed = {
    name: value
    for name, value in branches.flatten(
      {branch: params.get(branch, {}) for branch in ("prompt", "head")}
    ).items()
    if name not in names
  }
  scores = {name: float(value) for name, value in (best.scores or {}).items()}
  card = {**card, "step": best.step, "scores": scores}
  fixed = branches.unflatten(fixed)
  return product.Product(model.prompt, trained, card, fixed, model.head)

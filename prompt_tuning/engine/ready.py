"""A run whose data are read and whose parts fit each other; nothing is compiled yet."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from prompt_tuning.core import trainable as branches
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.data import batches as batching
from prompt_tuning.data import buckets, given, packing
from prompt_tuning.data.features import Layout
from prompt_tuning.engine import codes, heads, members, sharding, state, terms
from prompt_tuning.engine.evaluate import Evaluator
from prompt_tuning.engine.examples import Part, training_source, validation_part
from prompt_tuning.engine.recipe import Recipe
from prompt_tuning.objectives.objective import judged


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
  places: Places
  buckets: Sequence[int] = ()


# All parameters as they were drawn -> as the run starts.
Begin = Callable[[Any], Any]


def prepare(
  model: PromptedModel,
  backbone_params: Any,
  vocabulary: Any,
  task: Any,
  layout: Layout,
  recipe: Recipe,
  output: Any,
  teachers: Mapping[str, Any] | None = None,
  begin: Begin | None = None,
  judge: Any = None,
) -> Ready:
  """Reads the data, draws the prompt, and refuses what cannot run.

  Args:
    model: backbone and prompt. backbone_params: weights, as loaded.
    vocabulary: of the backbone. task: `data.task.TextTask`.
    layout: of its examples. recipe: numbers and choices. output: how predictions are
      made (`outputs/`), or None for the loss alone.
    teachers: name -> product that the objective learns from.
    begin: changes the parameters that were drawn; None leaves them.
    judge: the task whose validation split chooses the best; None for `task`.

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
  terms.check_traces(objective, model)
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
  judge = task if judge is None else judge
  if "validation" in judge.splits:
    validation = validation_part(judge, vocabulary, recipe.eval_examples, numbered)
    batching.check_lengths(validation.examples, layout, "validation")
    given.checked(validation.examples, wanted, "validation")
    # A stream draws its targets from running text, where some piece may be unknown.
    if not judge.streams and not numbered:
      targets = validation.examples, vocabulary, "validation", judge.labels
      batching.check_targets(*targets)
  if trains and recipe.cache_codes:
    codes.check(model, recipe.trainable, callable(source))
  params = initial_params(model, backbone_params, vocabulary, recipe.seed)
  if begin is not None:
    params = begin(params)
  own = terms.branch(objective, model, params, recipe.seed)
  params = {**params, **taught, **own}
  recipe = dataclasses.replace(recipe, trainable=(*recipe.trainable, *own))
  if recipe.trainable:
    branches.check(params, recipe.trainable)
  # Only training packs; evaluation keeps one example a row, in order.
  alone = dataclasses.replace(model, segments=1)
  evaluator = Evaluator(
    alone,
    judged(recipe.objective),
    layout,
    vocabulary,
    judge,
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
  most, reserved = layout.inputs, layout.lengths["inputs"] - layout.inputs
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

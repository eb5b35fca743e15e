"""One training run from its parts: data in, trained branches out.

`train.py` and `api.tune` both come here; neither knows what the other adds (a folder
with checkpoints, or nothing on disk).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from prompt_tuning.core import trainable as branches
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.data import batches as batching
from prompt_tuning.data.features import Layout
from prompt_tuning.engine import (
  codes,
  compilation,
  interrupt,
  loop,
  sharding,
  state,
  step,
)
from prompt_tuning.engine.checkpoint import Checkpoints
from prompt_tuning.engine.ready import Places, Ready, prepare, state_shapes
from prompt_tuning.engine.recipe import Recipe


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
    model,
    recipe.objective,
    transform,
    recipe.microbatches,
    recipe.drops(model.prompt, model.head),
  )
  return jax.jit(
    place.traced(step_fn),
    donate_argnums=0,
    out_shardings=(found.state, place.replicated),
    compiler_options=compilation.options(place.platform, positions),
  )

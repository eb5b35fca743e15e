"""The one compiled training step.

`loss(trainable, frozen, batch, key)` is differentiated in `trainable` alone; `frozen`
is an argument, never a closure constant, and is not donated.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from clu import metrics as clu_metrics

from prompt_tuning.core import trainable as branches
from prompt_tuning.core.forward import Forward
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.engine.state import TrainState
from prompt_tuning.objectives import objective as objectives
from prompt_tuning.objectives.objective import Term

Batch = dict[str, jax.Array]
Metrics = dict[str, clu_metrics.Average]


def loss_fn(model: PromptedModel, objective: Any) -> Callable[..., Any]:
  """(trainable, frozen, batch, key, counts) -> (summed loss, terms)."""

  def loss(trainable: Any, frozen: Any, batch: Batch, key: Any, counts: Any) -> Any:
    forward = Forward(model, branches.merge(trainable, frozen), batch, key)
    found = objectives.terms(objective, forward)
    return objectives.total(objective, found, counts), found

  return loss


def gradients(
  model: PromptedModel, objective: Any, microbatches: int
) -> Callable[..., tuple[Any, tuple[Term, ...]]]:
  """(trainable, frozen, batch, key) -> (gradient of the summed loss, terms).

  The loss is summed in units of the first term, see `objectives.objective.total`. The
  batch is divided into `microbatches` parts that run one after another; sums add up, so
  the result is that of the whole batch but for dropout keys.
  """
  part = jax.grad(loss_fn(model, objective), has_aux=True)

  def whole(trainable: Any, frozen: Any, batch: Batch, key: Any) -> Any:
    counts = objectives.counts(objective, batch)
    return part(trainable, frozen, batch, key, counts)

  if microbatches == 1:
    return whole

  def accumulated(trainable: Any, frozen: Any, batch: Batch, key: Any) -> Any:
    rows = len(batch["inputs"]) // microbatches
    counts = objectives.counts(objective, batch)

    def divided(x):
      # Every M-th row, so that each device's rows fall evenly into all parts. What has
      # several entries a row (one a segment) keeps them together.
      parts = x.reshape(rows, microbatches, -1, *x.shape[1:]).swapaxes(0, 1)
      return parts.reshape(microbatches, -1, *x.shape[1:])

    numbers = jnp.arange(microbatches)

    def run(number, micro):
      micro_key = None if key is None else jax.random.fold_in(key, number)
      return part(trainable, frozen, micro, micro_key, counts)

    micros = jax.tree.map(divided, batch)
    first = jax.tree.map(lambda x: x[0], micros)
    zero = jax.tree.map(
      lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(run, 0, first)
    )

    def body(total, item):
      return jax.tree.map(jnp.add, total, run(*item)), None

    return jax.lax.scan(body, zero, (numbers, micros))[0]

  return accumulated


def train_step(
  model: PromptedModel,
  objective: Any,
  transform: optax.GradientTransformation,
  microbatches: int = 1,
  dropout: bool = True,
) -> Callable[..., tuple[TrainState, Metrics]]:
  """(state, frozen, batch, key) -> (state, metrics).

  A step whose loss, gradient or update is not finite changes nothing but the step
  number, and reports it as the metric `bad_steps`: the last good state survives for the
  loop to keep. Pass `dropout=False` where nothing is dropped.
  """
  gradient = gradients(model, objective, microbatches)

  def step(state: TrainState, frozen: Any, batch: Batch, key: Any) -> Any:
    step_key = jax.random.fold_in(key, state.step) if dropout else None
    grads, found = gradient(state.trainable, frozen, batch, step_key)
    # A product, which XLA takes into whatever reads the gradient; a quotient it writes.
    share = 1 / objectives.divisor(found[0].weight)
    grads = jax.tree.map(lambda g: g * share, grads)
    norm = _norm(grads)
    loss = objectives.mean(objective, found)
    updates, optimizer = transform.update(grads, state.optimizer, state.trainable)
    sizes = jnp.stack([loss, norm, _norm(updates)])
    good = jnp.isfinite(sizes).all()
    moved = optax.apply_updates(state.trainable, updates)

    def keep(new, old):
      return jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)

    after = TrainState(
      state.step + 1,
      keep(moved, state.trainable),
      keep(optimizer, state.optimizer),
    )
    return after, _metrics(found, loss, norm, good)

  return step


def _norm(tree: Any) -> jax.Array:
  """Euclidean norm; its squares are never written.

  Squares of their own XLA shares with an optimizer's and holds in memory: a pass more
  over a generator's table.
  """
  # Some methods train a single number.
  leaves = map(jnp.atleast_1d, jax.tree.leaves(tree))
  return jnp.sqrt(sum(jnp.vecdot(x, x, precision="highest").sum() for x in leaves))


def _metrics(terms: Sequence[Term], loss: Any, norm: Any, good: Any) -> Metrics:
  average = clu_metrics.Average
  one = jnp.ones((), jnp.float32)
  found = {
    name: average(total=total, count=weight)
    for name, (total, weight) in objectives.metrics(terms).items()
  }
  weight = objectives.divisor(terms[0].weight)
  found["loss"] = average(total=loss * weight, count=weight)
  found["gradient_norm"] = average(total=norm, count=one)
  bad = 1.0 - good.astype(jnp.float32)
  # A count, not a mean: its weight stays 1 where metrics are merged.
  found["bad_steps"] = average(total=bad, count=one)
  return found


def merge_metrics(left: Metrics | None, right: Metrics) -> Metrics:
  """Adds two sets of metrics on the device."""
  if left is None:
    return right
  return {name: left[name].merge(right[name]) for name in right}

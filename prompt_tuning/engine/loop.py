"""The training loop: it dispatches steps, a few of them ahead of the device."""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from prompt_tuning.data.batches import ahead
from prompt_tuning.engine.interrupt import StoppedError, UnfinishedError
from prompt_tuning.engine.state import TrainState
from prompt_tuning.engine.step import merge_metrics

Scores = Mapping[str, float]

# Steps that may be under way: enough to keep a device busy, few enough that a run which
# is told to end can save within seconds.
AHEAD = 4
# Of the default of SAVE_PERIOD, see `save_period`.
SAVES, MOST_UNSAVED = 10, 1000


class DivergedError(ValueError):
  """The loss, its gradient or an update stopped being finite."""


class Recorder(Protocol):
  """Where a run's metrics and words go (`engine.log.Log`, or nothing)."""

  def write(self, step: int, split: str, values: Scores) -> None: ...
  def step(self, step: int) -> None: ...
  def say(self, text: str) -> None: ...


@dataclasses.dataclass(frozen=True)
class Plan:
  """How long to train, and what to do when.

  Attributes:
    steps: TRAIN_STEPS.
    log_period, eval_period, save_period: in steps; 0 for only at the end. None for
      save_period chooses, see `save_period`.
    metric: validation score that decides which prompt is best (higher is better, but
      for names that hold "loss").
    patience: evaluations without a new best before training stops; 0 for never.
    keep: which step is the product, "best" or "last".
  """

  steps: int
  log_period: int = 50
  eval_period: int = 0
  save_period: int | None = 0
  metric: str = "loss"
  patience: int = 0
  keep: str = "best"

  def __post_init__(self) -> None:
    for name in ("steps", "log_period", "eval_period", "save_period", "patience"):
      if (getattr(self, name) or 0) < 0:
        raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}.")

  @property
  def saves(self) -> int:
    """Steps between checkpoints; 0 for only at the end."""
    if self.save_period is None:
      return save_period(self.steps, self.log_period)
    return self.save_period

  def due(self, step: int, period: int) -> bool:
    return step == self.steps or (period > 0 and step % period == 0)

  def takes(self, step: int, new: Scores, old: Scores | None) -> bool:
    """Whether the state of a step, evaluated, is the product so far."""
    if self.keep == "last":
      return step == self.steps
    return self.better(new, old)

  def better(self, new: Scores, old: Scores | None) -> bool:
    """Whether scores beat the best so far; NaN, or none where a metric failed, never.

    That evaluation gives such a score is checked before the first step.
    """
    value = new.get(self.metric, math.nan)
    if math.isnan(value):
      return False
    if old is None:
      return True
    sign = -1 if "loss" in self.metric else 1
    return sign * value > sign * old[self.metric]


@dataclasses.dataclass
class Best:
  """The best evaluation so far."""

  step: int = 0
  scores: Scores | None = None


def save_period(steps: int, log_period: int) -> int:
  """SAVE_PERIOD where it is None: a tenth of the steps, but at most 1,000.

  Saves stand where lines of the log do: the next multiple of LOG_PERIOD.
  """
  period = min(-(-steps // SAVES), MOST_UNSAVED)
  return -(-period // log_period) * log_period if log_period else period


def finished(step: int, best: Best, plan: Plan) -> bool:
  """Whether nothing is left to train: all steps are taken, or patience ended."""
  return step >= plan.steps or (best.scores is not None and _stale(step, best, plan))


def run(
  step: Callable[..., Any],
  state: TrainState,
  frozen: Any,
  batches: Iterator[Mapping[str, np.ndarray]],
  key: Any,
  plan: Plan,
  put: Callable[[Mapping[str, np.ndarray]], Any],
  recorder: Recorder,
  rate: Callable[[int], float] | None,
  evaluate: Callable[[TrainState], Scores] | None = None,
  save: Callable[[TrainState], None] | None = None,
  keep: Callable[[TrainState, Scores], None] | None = None,
  best: Best | None = None,
  stop: Callable[[int], bool] = lambda step: False,
  owed: bool = False,
) -> tuple[TrainState, Best]:
  """Trains from `state` to the end of the plan.

  Args:
    step: `engine.step.train_step`, compiled; its state is donated.
    state: where to start. frozen: the rest of the parameters.
    batches: numpy batches from the state's step on.
    key: dropout key of the run. plan: see `Plan`.
    put: copies a batch to the devices. recorder: metrics and words.
    rate: learning rate by step, for messages; None where the optimiser keeps its own.
    evaluate: validation scores of a state; raises `UnfinishedError` if it was told to
      end meanwhile.
    save: starts a checkpoint. keep: writes the product of a new best state.
    best: the best that an earlier part of this run has seen.
    stop: asked after each step; once true, the state is saved and the run ends. An
      evaluation that is due then is left to whoever goes on.
    owed: whether the evaluation of `state` was left so.

  Raises:
    DivergedError: if a loss or gradient was not finite; nothing was saved since.
    StoppedError: if the run was told to end before the plan's end.
  """
  best = best or Best()
  number = int(state.step)

  def assess() -> bool:
    """Evaluates the state, keeps it if it is the best; False if told to end."""
    nonlocal best
    try:
      scores = evaluate(state)
    except UnfinishedError:
      return False
    # The line comes last: where it is missing, the evaluation is owed.
    if plan.takes(number, scores, best.scores):
      best = Best(number, scores)
      if keep is not None:
        keep(state, scores)
    recorder.write(number, "validation", scores)
    return True

  if owed and evaluate is not None and not assess():
    raise StoppedError(_told(number, save is not None))
  if evaluate is not None and best.scores is not None and _stale(number, best, plan):
    recorder.say(f"Stopped already, at step {number}; the best is step {best.step}.")
    return state, best
  merge = jax.jit(merge_metrics)
  metrics = None
  feed = ahead(put(batch) for batch in batches)
  under_way: collections.deque[Any] = collections.deque()
  try:
    while number < plan.steps:
      batch = next(feed, None)
      if batch is None:
        raise ValueError(f"The training data ended at step {number} of {plan.steps}.")
      state, new = step(state, frozen, batch, key)
      under_way.append(new["loss"])
      if len(under_way) > AHEAD:
        jax.block_until_ready(under_way.popleft())
      metrics = new if metrics is None else merge(metrics, new)
      number += 1
      recorder.step(number)
      evaluates = evaluate is not None and plan.due(number, plan.eval_period)
      told = number < plan.steps and stop(number)
      saves = save is not None and (told or plan.due(number, plan.saves))
      if plan.due(number, plan.log_period) or evaluates or saves:
        _report(number, metrics, rate, recorder)
        metrics = None
      if evaluates and not told:
        told = not assess()
      ends = evaluates and not told and _stale(number, best, plan)
      if save is not None and (saves or told or ends):
        save(state)
      if told:
        raise StoppedError(_told(number, save is not None))
      if ends:
        recorder.say(
          f"Stopped at step {number}: no better {plan.metric} since step {best.step}."
        )
        break
  finally:
    feed.close()
  return state, best


def _told(number: int, saved: bool) -> str:
  kept = "Give the same command to go on." if saved else "Nothing was saved."
  return f"Told to end at step {number}. {kept}"


def _stale(number: int, best: Best, plan: Plan) -> bool:
  if not plan.patience or not plan.eval_period:
    return False
  return number - best.step >= plan.patience * plan.eval_period


def _report(number: int, metrics: Any, rate: Any, recorder: Recorder) -> None:
  metrics = jax.device_get(metrics)
  values = {name: float(metric.compute()) for name, metric in metrics.items()}
  if values.pop("bad_steps") > 0 or not math.isfinite(values["loss"]):
    shown = "" if rate is None else f" (learning rate {float(rate(number)):g})"
    raise DivergedError(
      f"The loss, its gradient or an update was not finite at or before step {number}"
      f"{shown}. The last checkpoint before is kept. "
      "Lower LEARNING_RATE, or start from a smaller initialisation."
    )
  if rate is not None:
    values["learning_rate"] = float(rate(number))
  recorder.write(number, "train", values)

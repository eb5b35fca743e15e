"""One run in its MODEL_DIR: entered, gone on with or begun, told of, left whole."""

import contextlib
import dataclasses
import time
from typing import Any

import jax

from prompt_tuning.core import trainable as branches
from prompt_tuning.engine import best as kept
from prompt_tuning.engine import (
  distributed,
  fit,
  history,
  identity,
  interrupt,
  loop,
  model_dir,
  records,
  report,
  resume,
  state,
  summary,
)
from prompt_tuning.engine.checkpoint import Checkpoints
from prompt_tuning.engine.facts import product_of
from prompt_tuning.engine.log import Both, Log, Silent
from prompt_tuning.engine.ready import Ready


@dataclasses.dataclass(frozen=True)
class Job:
  """A run that nothing stands against.

  Attributes:
    folder: MODEL_DIR, here or remote. configuration: all of it, as text.
    hangs_on: data, backbone and vocabulary, see `engine.identity`.
    ready: of `ready.prepare`. facts: of `card_facts`.
    tensorboard: also write TensorBoard events.
    watch: a recorder in place of the screen; None for the screen.
  """

  folder: Any
  configuration: str
  hangs_on: identity.Identity
  ready: Ready
  facts: dict[str, Any]
  tensorboard: bool = True
  watch: Any = None

  @property
  def plan(self) -> loop.Plan:
    """How long, and what when."""
    return self.ready.recipe.plan

  def run(self) -> fit.Fitted:
    """Trains from the newest checkpoint, or evaluates where there are no steps.

    Raises:
      ValueError, OSError: if it cannot go on; its checkpoints are whole.
      SystemExit: with 128 + the signal after SIGTERM, SIGINT or SIGHUP.
    """
    start = time.monotonic()
    with contextlib.ExitStack() as stack:
      told = stack.enter_context(interrupt.on_signals())
      stack.enter_context(
        model_dir.entered(
          self.folder, self.configuration, self.plan.steps, self.hangs_on
        )
      )
      checkpoints = None
      if self.plan.steps:
        checkpoints = Checkpoints(self.folder / "checkpoints")
        stack.callback(checkpoints.close)
      notes: list[str] = []
      begin = fit.resumed(self.ready, checkpoints, notes.append)
      first = 0 if begin is None else int(begin.step)
      step, scores, owed, said = distributed.from_first(
        lambda: _known(self.folder, self.ready, first)
      )
      best = loop.Best(step, scores)
      log = self._log(first)
      stack.callback(log.close)
      for note in notes + said:
        log.say(note)
      if begin is not None and not owed and loop.finished(first, best, self.plan):
        return self._finished(begin, best, log)
      try:
        if distributed.is_first():
          report.model_info(self.folder, self.ready)
          log.say(summary.opening(self.ready, self.facts, self.folder))
        fitted = fit.run(
          self.ready, log, checkpoints, self.keep, best, told, begin, owed
        )
        if checkpoints is not None:
          checkpoints.wait()
      except interrupt.StoppedError as error:
        log.say(str(error))
        raise SystemExit(told.code) from error
      except ValueError:
        raise
      except Exception as error:
        distributed.leave(error)
        raise
      if distributed.is_first():
        report.learning_curve(self.folder)
        self._summary(fitted, time.monotonic() - start, log)
    return fitted

  def _log(self, first: int) -> Any:
    if not distributed.is_first():
      return Silent()
    told = self.watch is not None
    log = Log(self.folder, self.plan.steps, first, self.tensorboard, quiet=told)
    return Both(log, self.watch) if told else log

  def keep(self, params: Any, trained: Any, best: loop.Best) -> None:
    """Writes the product of a state."""
    if distributed.is_first():
      made = product_of(self.ready.model, params, trained, self.facts, best)
      kept.save(self.folder, made)

  def _finished(self, begin: state.TrainState, best: loop.Best, log: Any) -> fit.Fitted:
    """Trains nothing; makes good what a kill after the last step left undone."""
    fitted = fit.finished(self.ready, begin, best)
    step = int(begin.step)
    if distributed.is_first():
      if best.scores is None and not kept.holds(self.folder, step):
        self.keep(fitted.params, fitted.trainable, loop.Best(step))
        if self.ready.validation is not None:
          log.say(f"The best step is unknown; the last one, {step}, takes its place.")
      if not (self.folder / "learning-curve.png").is_file():
        report.learning_curve(self.folder)
      log.say(f"finished at step {step}; {self._product()}")
    return fitted

  def _product(self) -> str:
    what = "prompt" if self.ready.model.prompt is not None else "trained branches"
    return f"{what}: {self.folder / kept.PRODUCT}"

  def _summary(self, fitted: fit.Fitted, seconds: float, log: Any) -> None:
    if self.plan.steps:
      trained = branches.split(fitted.params, self.ready.recipe.trainable)[0]
      count, where = branches.count(trained), jax.devices()[0].platform
      log.say(f"trained {count:,} numbers in {seconds:.0f} s on {where}")
    if fitted.best.scores:
      shown = "  ".join(f"{k} {v:.4g}" for k, v in fitted.best.scores.items())
      log.say(f"best validation, step {fitted.best.step}: {shown}")
    path = self.folder / history.NAME
    if self.plan.steps and path.is_file():
      lines = [line for _, line in records.read_lines(path)[0]]
      if table := summary.closing(lines, fitted.best.step):
        log.say(table)
    if self.plan.steps:
      curve = self.folder / "learning-curve.png"
      log.say(f"{self._product()}   curve: {curve}")
      splits = self.ready.evaluator.task.splits
      split = "test" if "test" in splits else splits[-1]
      log.say(f"next: python -m prompt_tuning.eval {self.folder} --split {split}")


def _known(folder: Any, ready: Ready, first: int) -> list[Any]:
  said: list[str] = []
  return [*resume.known(folder, ready, first, said.append), said]

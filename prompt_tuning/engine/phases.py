"""A run of several phases: asks its procedure, and carries out what it describes.

Each phase that trains is a run of its own in MODEL_DIR/phases/kk_NAME, with the loop,
the checkpoints and the product of any run. What is done is written down last of all in
its `result.json`, so that whoever is killed goes on with the phase that was under way.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any

from prompt_tuning.core import trainable as branches
from prompt_tuning.engine import (
  ahead,
  distributed,
  ended,
  identity,
  interrupt,
  measured,
  model_dir,
  results,
  start,
  tables,
)
from prompt_tuning.engine import best as kept
from prompt_tuning.engine.job import Job
from prompt_tuning.engine.ready import initial_params
from prompt_tuning.engine.sentence import Sentence
from prompt_tuning.procedures.phase import OWN, Phase, Procedure, Result

FOLDER = "phases"
NOTHING = "Told to end between two phases. Give the same command to go on."


@dataclasses.dataclass(frozen=True)
class Phases:
  """A run of several phases.

  Attributes:
    folder: MODEL_DIR, here or remote. sentence: what a phase takes where it says
      nothing. procedure: says what comes next.
    tensorboard: also write TensorBoard events.
  """

  folder: Any
  sentence: Sentence
  procedure: Procedure
  tensorboard: bool = True

  def run(self) -> list[Result]:
    """Carries out every phase that is not done yet; the results of all.

    Raises:
      ValueError, OSError: if it cannot go on; the phases before are whole.
      SystemExit: with 128 + the signal after SIGTERM, SIGINT or SIGHUP.
    """
    sentence = self.sentence
    hangs_on = identity.frozen(sentence.loaded, sentence.loaded.vocabulary)
    text, steps = sentence.configuration, sentence.recipe.plan.steps
    with interrupt.before_training(NOTHING):
      distributed.together(lambda: ahead.check(self.procedure, sentence))
    done: list[Result] = []
    with model_dir.entered(self.folder, text, steps, hangs_on):
      while (phase := self.procedure.next(tuple(done))) is not None:
        if phase.name in [result.name for result in done]:
          raise ValueError(
            f"The procedure names two phases {phase.name!r}; each needs its own name."
          )
        done.append(self._done(phase, done))
        self._told_of(done)
      self._finish(done)
    return done

  def _place(self, number: int, name: str) -> Any:
    """The folder of a phase.

    Raises:
      ValueError: if another phase stands in its place.
    """
    there = self.folder / FOLDER
    own = f"{number:02d}_{name}"
    names = [path.name for path in there.glob("*")] if there.is_dir() else []
    for other in names:
      if re.match(rf"{number:02d}_", other) and other != own:
        raise ValueError(
          f"{str(there / other)!r} stands where the phase {name!r} belongs. Another "
          "procedure wrote it: choose another MODEL_DIR."
        )
    return there / own

  def _done(self, phase: Phase, done: Sequence[Result]) -> Result:
    """The result of a phase, from its folder or carried out."""
    number = len(done)
    folder = self._place(number, phase.name)
    found = results.read(folder, phase.name)
    if found is not None:
      return found
    if distributed.is_first():
      kind = "train" if phase.measure is None else "measure"
      ended.say(f"phase {number} {phase.name} ({kind}): {folder}")
    with interrupt.before_training(NOTHING):
      before = {
        result.name: self._place(i, result.name) / kept.PRODUCT
        for i, result in enumerate(done)
        if result.trained
      }
      products = self._products(before)
      sentence = of_phase(self.sentence, phase, products)
      given = distributed.together(lambda: _given(sentence, phase, products))
    begin = functools.partial(start.begun, given=given) if given else None
    if phase.measure is not None:
      self._measure(folder, sentence, phase, begin)
    else:
      self._train(folder, sentence, phase.name, begin, given)
    distributed.wait(f"the phase {phase.name} is written")
    found = results.read(folder, phase.name)
    if found is None:
      raise ValueError(f"{str(folder)!r} holds no result of the phase {phase.name!r}.")
    return found

  def _products(self, before: dict[str, Any]) -> start.Products:
    loaded = self.sentence.loaded
    return start.Products(before, loaded.fingerprint, loaded.backbone.spec)

  def _train(
    self, folder: Any, sentence: Sentence, name: str, begin: Any, given: Any
  ) -> None:
    with interrupt.before_training(NOTHING):
      ready = distributed.together(lambda: sentence.ready(begin))
      hangs_on = distributed.together(sentence.hangs_on)
      hangs_on = {**hangs_on, "start": identity.arrays(given) if given else None}
      distributed.same(hangs_on)
    facts = {**sentence.facts(ready), "phase": name}
    text = sentence.configuration
    job = Job(folder, text, hangs_on, ready, facts, self.tensorboard)
    fitted = job.run()
    if distributed.is_first():
      best, steps = fitted.best, sentence.recipe.plan.steps
      if not steps:
        # Nothing trained: what it starts from is what it gives.
        job.keep(fitted.params, fitted.trainable, best)
      results.write(folder, name, steps, best.step, best.scores or {})

  def _measure(self, folder: Any, sentence: Sentence, phase: Phase, begin: Any) -> None:
    with interrupt.on_signals() as told:
      try:
        arrays, scores = measured.measured(sentence, phase.measure, begin, told)
      except interrupt.UnfinishedError as error:
        ended.say("Told to end while measuring. Give the same command to go on.")
        raise SystemExit(told.code) from error
    if distributed.is_first():
      folder.mkdir(parents=True, exist_ok=True)
      results.write(folder, phase.name, 0, 0, scores, arrays)

  def _told_of(self, done: Sequence[Result]) -> None:
    if not distributed.is_first():
      return
    last = done[-1]
    shown = "  ".join(f"{name} {value:.4g}" for name, value in last.scores.items())
    ended.say(f"phase {len(done) - 1} {last.name}: {shown or 'done'}")
    table = self.procedure.table(tuple(done))
    if table is not None:
      tables.write(self.folder, table)

  def _finish(self, done: Sequence[Result]) -> None:
    """The product of the whole run, and what there is to say."""
    if not distributed.is_first():
      return
    name = self.procedure.product(tuple(done))
    table = self.procedure.table(tuple(done))
    if table is not None:
      ended.say(tables.text(table))
    if name is None:
      ended.say(f"finished: {len(done)} phases, none of which trains")
      return
    number = [result.name for result in done].index(name)
    target = self.folder / kept.PRODUCT
    kept.copy(self._place(number, name) / kept.PRODUCT, target)
    ended.say(f"finished: {len(done)} phases; prompt: {target}, of the phase {name}")


def of_phase(run: Sentence, phase: Phase, products: start.Products) -> Sentence:
  """The sentence of a phase: what it says, and the run's own where it says nothing.

  A schedule that the phase does not give is the run's own, stretched to its steps.
  """
  recipe, plan = run.recipe, run.recipe.plan
  changed: dict[str, Any] = {}
  for name in ("steps", "keep", "metric"):
    if getattr(phase, name) is not None:
      changed[name] = getattr(phase, name)
  own = dataclasses.replace(plan, **changed)
  optimizer = phase.optimizer
  if optimizer is None:
    optimizer = recipe.optimizer
    if phase.groups is not None:
      optimizer = optimizer.grouped(phase.groups)
    if own.steps != plan.steps and own.steps and plan.steps:
      optimizer = optimizer.stretched(plan.steps / own.steps)
  recipe = dataclasses.replace(recipe, plan=own, optimizer=optimizer)
  if phase.objective is not None:
    recipe = dataclasses.replace(recipe, objective=phase.objective)
  if phase.trainable is not None:
    recipe = dataclasses.replace(recipe, trainable=tuple(phase.trainable))
  teachers = {name: products.opened(owner) for name, owner in phase.teachers.items()}
  return dataclasses.replace(
    run,
    task=run.task if phase.task is None else phase.task,
    method=run.method if phase.method is None else phase.method,
    prompt=run.prompt if phase.prompt == OWN else phase.prompt,
    output=run.output if phase.output == OWN else phase.output,
    recipe=recipe,
    judge=phase.judge,
    teachers={**run.teachers, **teachers},
  )


def _given(sentence: Sentence, phase: Phase, products: start.Products) -> dict:
  """Path -> array of all that a phase starts from."""
  given: dict[str, Any] = {}
  if phase.start:
    model = sentence.model
    words, seed = sentence.loaded.vocabulary, sentence.recipe.seed
    drawn = branches.flatten(initial_params(model, sentence.loaded.params, words, seed))
    start.check(phase.start, products, drawn, phase.name)
    given = start.values(phase.start, products)
  return given

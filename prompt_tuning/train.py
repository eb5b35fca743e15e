"""Trains a prompt, a whole model, or a model from nothing: only TRAINABLE differs.

python -m prompt_tuning.train --gin_file=configs/... --gin.MODEL_DIR="'runs/name'"
"""

if __name__ == "__main__":
  # Before anything slow is imported.
  from prompt_tuning.engine import early
  from prompt_tuning.terminal import usage

  usage.show("train")
  early.begin("prompt_tuning.train")

from collections.abc import Mapping
from typing import Any

from prompt_tuning.core import files
from prompt_tuning.engine import config, distributed, identity, interrupt
from prompt_tuning.engine import model_dir as folders
from prompt_tuning.engine.job import Job
from prompt_tuning.engine.phases import Phases
from prompt_tuning.engine.recipe import Origin, Reading, Recipe
from prompt_tuning.engine.sentence import Sentence
from prompt_tuning.engine.sharding import on_host
from prompt_tuning.interop import load as backbone_load
from prompt_tuning.interop import teachers as teaching


def train(
  model_dir: str,
  task: Any,
  method: str,
  reading: Reading,
  recipe: Recipe,
  origin: Origin,
  prompt: Any = None,
  head: Any = None,
  output: Any = None,
  procedure: Any = None,
  tensorboard: bool = True,
  teachers: Mapping[str, str] | None = None,
) -> Any:
  """Runs one sentence (backbone, task, method, objective, numbers) into MODEL_DIR.

  Args:
    model_dir: MODEL_DIR, here or remote (gs://...); a run that was interrupted goes on
      from its newest checkpoint.
    task: `data.task.TextTask`. method: a name for the card.
    reading: how its examples become rows. recipe: numbers and choices of the training.
    origin: of the frozen weights. prompt: `core.prompt.Prompt`, or None.
    head: a module of `heads/`, which trains beside the rest; None for none.
    output: see `outputs/`; None evaluates the loss alone.
    procedure: of several phases, see `procedures/`; None for one, in MODEL_DIR itself.
    tensorboard: also write TensorBoard events.
    teachers: name -> folder of a prompt that the objective learns from.

  Returns:
    `engine.fit.Fitted`; with a procedure, the results of its phases.

  Raises:
    ValueError: for anything that cannot run, before any step is compiled.
    SystemExit: with 128 + the signal after SIGTERM, Ctrl-C or SIGHUP; the state was
      saved.
  """
  folder = files.at(model_dir)
  configuration = config.text()
  steps = recipe.plan.steps

  def check(found: identity.Identity | None = None) -> None:
    folders.check(folder, configuration, steps, found)

  def load() -> backbone_load.Loaded:
    # A device would have no room for weights that are divided over many.
    with on_host():
      return backbone_load.load(
        origin.checkpoint, origin.backbone, origin.vocabulary, recipe.seed
      )

  with interrupt.before_training():
    distributed.by_first(check)
    # Nothing is written before all that can be refused has been, by any process.
    loaded = distributed.together(load)
    said = task, method, prompt, reading, recipe, output, configuration
    sentence = distributed.together(
      lambda: Sentence(
        loaded, *said, teachers=teaching.read(teachers or {}, loaded), head=head
      )
    )
    settled = {"configuration": folders.settled(configuration)}
    if procedure is None:
      ready = distributed.together(sentence.ready)
      hangs_on = distributed.together(sentence.hangs_on)
      distributed.same({**hangs_on, **settled})
      distributed.by_first(lambda: check(hangs_on))
    else:
      distributed.same(settled)
  if procedure is not None:
    return Phases(folder, sentence, procedure, tensorboard).run()
  facts = sentence.facts(ready)
  return Job(folder, configuration, hangs_on, ready, facts, tensorboard).run()


if __name__ == "__main__":
  import sys

  from prompt_tuning import train as verb
  from prompt_tuning.terminal import short

  config.run_verb(verb.train, short.spelt_out("train", sys.argv[1:]))

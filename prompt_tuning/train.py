"""Trains a prompt, a whole model, or a model from nothing: only TRAINABLE differs.

python -m prompt_tuning.train --gin_file=configs/... --gin.MODEL_DIR="'runs/name'"
"""

if __name__ == "__main__":
  # Before anything slow is imported.
  from prompt_tuning.engine import huge_pages

  huge_pages.ask("prompt_tuning.train")

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from prompt_tuning.core import files
from prompt_tuning.core import trainable as branches
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.data.features import Layout
from prompt_tuning.engine import (
  config,
  distributed,
  fit,
  interrupt,
  lock,
  loop,
  product,
  report,
)
from prompt_tuning.engine.checkpoint import Checkpoints, check_place
from prompt_tuning.engine.log import Log, Silent
from prompt_tuning.engine.sharding import DEFAULT, Sharding, on_host
from prompt_tuning.interop import load as backbone_load

# Bindings that may change when a run is resumed.
MAY_CHANGE = (
  "MODEL_DIR",
  "TRAIN_STEPS",
  "EVAL_PERIOD",
  "SAVE_PERIOD",
  "LOG_PERIOD",
  "EVAL_EXAMPLES",
  "PATIENCE",
  "TENSORBOARD",
  # The same run on other devices.
  "SHARDING",
  "NUM_PARTITIONS",
  "MODEL_PARALLEL_SUBMESH",
  "REPLICAS",
  "AXIS_RULES",
  "TRAINABLE_RULES",
)


def train(
  model_dir: str,
  task: Any,
  task_feature_lengths: Mapping[str, int],
  method: str,
  trainable: Sequence[str],
  objective: Any,
  optimizer: Any,
  train_steps: int,
  backbone: Any = None,
  initial_checkpoint_path: str | None = None,
  vocabulary: Any = None,
  prompt: Any = None,
  prompt_place: str = "front",
  truncate: bool = False,
  output: Any = None,
  batch_size: int = 32,
  eval_batch_size: int = 64,
  eval_period: int = 0,
  save_period: int = 0,
  log_period: int = 50,
  eval_examples: int | None = None,
  best_metric: str = "loss",
  patience: int = 0,
  microbatches: int = 1,
  pack_segments: int = 1,
  buckets: int = 1,
  cache_codes: bool = False,
  dropout_rate: float = 0.0,
  seed: int = 0,
  tensorboard: bool = True,
  sharding: Sharding = DEFAULT,
) -> fit.Fitted:
  """Runs one sentence (backbone, task, method, objective, numbers) into MODEL_DIR.

  Args:
    model_dir: MODEL_DIR, here or remote (gs://...); a run that was interrupted goes on
      from its newest checkpoint.
    task: `data.task.TextTask`. task_feature_lengths: {"inputs": T, "targets": U}.
    method: a name for the card. trainable: branches that train.
    objective: see `objectives/`. optimizer: `engine.optimizer.Optimizer`.
    train_steps: steps in all; 0 evaluates only.
    backbone: architecture; may be None where a checkpoint states it.
    initial_checkpoint_path: weights ("mini", or a folder); None draws them at random.
    vocabulary: SeqIO vocabulary; None takes the one beside the checkpoint.
    prompt: `core.prompt.Prompt`, or None. prompt_place: see `data.features`.
    truncate: cut examples that are too long instead of refusing them.
    output: see `outputs/`; None evaluates the loss alone.
    batch_size, eval_batch_size, eval_period, save_period, log_period, eval_examples,
      best_metric, patience, microbatches, pack_segments, buckets, cache_codes, seed:
      see `engine.fit.Recipe` and `engine.loop.Plan`.
    dropout_rate: of the backbone's layers while training.
    tensorboard: also write TensorBoard events.
    sharding: the mesh and what is divided over it, see `engine.sharding`.

  Raises:
    ValueError: for anything that cannot run, before any step is compiled.
    SystemExit: with the code 143 after SIGTERM; the state was saved.
  """
  folder = files.at(model_dir)
  check_feature_lengths(task_feature_lengths)
  configuration = config.text()
  if train_steps:
    distributed.by_first(lambda: _check_folder(folder, configuration))
  plan = loop.Plan(
    train_steps, log_period, eval_period, save_period, best_metric, patience
  )
  # A device would have no room for weights that are divided over many.
  with on_host():
    loaded = backbone_load.load(initial_checkpoint_path, backbone, vocabulary, seed)
  # The rate holds for a backbone that states its own, too.
  backbone = loaded.backbone.recast(dropout_rate=dropout_rate)
  model = PromptedModel(backbone, prompt, pack_segments)
  layout = Layout(
    task_feature_lengths["inputs"],
    task_feature_lengths["targets"],
    model.lengths.get("encoder", 0),
    model.lengths.get("decoder", 0),
    prompt_place,
    truncate,
  )
  recipe = fit.Recipe(
    trainable=tuple(trainable),
    objective=objective,
    optimizer=optimizer,
    plan=plan,
    batch_size=batch_size,
    eval_batch_size=eval_batch_size,
    eval_examples=eval_examples,
    microbatches=microbatches,
    pack_segments=pack_segments,
    buckets=buckets,
    cache_codes=cache_codes,
    seed=seed,
    dropout=dropout_rate > 0 or fit.drops(prompt),
    sharding=sharding,
  )
  # Nothing is written before all that can be refused has been.
  ready = fit.prepare(
    model, loaded.params, loaded.vocabulary, task, layout, recipe, output
  )
  writes, start = distributed.is_first(), time.monotonic()
  facts = fit.facts(loaded, method, layout, task, configuration, recipe)

  def keep(params: Any, trained: Any, best: loop.Best) -> None:
    if writes:
      fit.product_of(model, params, trained, facts, best).save(folder / "prompt")

  with contextlib.ExitStack() as stack:
    told = stack.enter_context(interrupt.on_terminate())
    checkpoints = None
    if train_steps:
      checkpoints = stack.enter_context(_entered(folder, configuration))
    notes: list[str] = []
    begin = fit.resumed(ready, checkpoints, notes.append)
    first = 0 if begin is None else int(begin.step)
    log = Log(folder, train_steps, first, tensorboard) if writes else Silent()
    stack.callback(log.close)
    for note in notes:
      log.say(note)
    if writes:
      report.model_info(folder, ready)
    best = earlier_best(folder, first)
    try:
      fitted = fit.run(ready, log, checkpoints, keep, best, told, begin)
    except interrupt.StoppedError as error:
      log.say(str(error))
      raise SystemExit(interrupt.EXIT_CODE) from error
  if writes:
    report.learning_curve(folder)
    seconds = time.monotonic() - start
    _summary(folder, fitted, recipe, seconds, prompt is not None)
  return fitted


def check_feature_lengths(lengths: Mapping[str, int]) -> None:
  """Raises ValueError unless there is one whole number for each side."""
  wrong = set(lengths) != {"inputs", "targets"}
  if wrong or not all(isinstance(value, int) for value in lengths.values()):
    raise ValueError(
      f"`TASK_FEATURE_LENGTHS` is {dict(lengths)}; it must name two whole numbers, "
      'such as {"inputs": 128, "targets": 8}.'
    )


def _check_folder(folder: Any, configuration: str) -> None:
  """Refuses a MODEL_DIR of another job, of another configuration, or out of reach."""
  check_place(folder)
  lock.check(folder)
  _check_configuration(folder, configuration)


def _check_configuration(folder: Any, configuration: str) -> None:
  written = folder / "config.gin"
  if written.is_file():
    differ = config.differing_lines(written.read_text(), configuration, MAY_CHANGE)
    if differ:
      raise ValueError(
        f"`MODEL_DIR` {str(folder)!r} holds a run of another configuration "
        f"({'; '.join(differ[:5])}). Choose another folder, or remove that one."
      )
  elif (folder / "checkpoints").is_dir():
    raise ValueError(
      f"`MODEL_DIR` {str(folder)!r} holds checkpoints without a config.gin, so what "
      "they belong to is unknown. Choose another folder."
    )


@contextlib.contextmanager
def _entered(folder: Any, configuration: str) -> Iterator[Checkpoints]:
  """MODEL_DIR for this job alone, open for writing; its checkpoints."""
  with contextlib.ExitStack() as stack:

    def enter() -> None:
      stack.enter_context(lock.held(folder))
      _check_configuration(folder, configuration)
      files.sweep(folder)
      files.write_text(folder / "config.gin", configuration)

    distributed.by_first(enter)
    checkpoints = Checkpoints(folder / "checkpoints")
    stack.callback(checkpoints.close)
    yield checkpoints


def earlier_best(folder: Any, first: int) -> loop.Best | None:
  """The best of the part of this run that a resumed run does not repeat."""
  if not first or not (folder / "prompt" / "card.json").is_file():
    return None
  card = product.load(folder / "prompt").card
  if not card["scores"] or card["step"] > first:
    return None
  return loop.Best(card["step"], card["scores"])


def _summary(
  folder: Any,
  fitted: fit.Fitted,
  recipe: fit.Recipe,
  seconds: float,
  prompted: bool,
) -> None:
  count = branches.count(branches.split(fitted.params, recipe.trainable)[0])
  print(f"trained {count:,} numbers in {seconds:.0f} s on {jax.devices()[0].platform}")
  if fitted.best.scores:
    shown = "  ".join(f"{k} {v:.4g}" for k, v in fitted.best.scores.items())
    print(f"best validation, step {fitted.best.step}: {shown}")
  if recipe.plan.steps:
    what = "prompt" if prompted else "trained branches"
    print(f"{what}: {folder / 'prompt'}   curve: {folder / 'learning-curve.png'}")


if __name__ == "__main__":
  from prompt_tuning import train as verb

  config.run_verb(verb.train)

"""Trains a prompt, a whole model, or a model from nothing: only TRAINABLE differs.

python -m prompt_tuning.train --gin_file=configs/... --gin.MODEL_DIR="'runs/name'"
"""

if __name__ == "__main__":
  # Before anything slow is imported.
  from prompt_tuning.engine import early

  early.begin("prompt_tuning.train")

from collections.abc import Mapping, Sequence
from typing import Any

from prompt_tuning.core import files
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.data.features import Layout
from prompt_tuning.engine import (
  config,
  distributed,
  fit,
  identity,
  interrupt,
  loop,
)
from prompt_tuning.engine import model_dir as folders
from prompt_tuning.engine.job import Job
from prompt_tuning.engine.sharding import DEFAULT, Sharding, on_host
from prompt_tuning.interop import load as backbone_load
from prompt_tuning.interop import teachers as teaching


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
  head: Any = None,
  prompt_place: str = "front",
  truncate: bool = False,
  output: Any = None,
  batch_size: int = 32,
  eval_batch_size: int = 64,
  eval_period: int = 0,
  save_period: int | None = None,
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
  teachers: Mapping[str, str] | None = None,
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
    vocabulary: see `interop.vocabulary.located`; None takes the one beside the
      checkpoint.
    prompt: `core.prompt.Prompt`, or None. prompt_place: see `data.features`.
    head: a module of `heads/`, which trains beside the rest; None for none.
    truncate: cut examples that are too long instead of refusing them.
    output: see `outputs/`; None evaluates the loss alone.
    batch_size, eval_batch_size, eval_period, save_period, log_period, eval_examples,
      best_metric, patience, microbatches, pack_segments, buckets, cache_codes, seed:
      see `engine.fit.Recipe` and `engine.loop.Plan`; save_period = None chooses, see
      `engine.loop.save_period`.
    dropout_rate: of the backbone's layers while training.
    tensorboard: also write TensorBoard events.
    sharding: the mesh and what is divided over it, see `engine.sharding`.
    teachers: name -> folder of a prompt that the objective learns from.

  Raises:
    ValueError: for anything that cannot run, before any step is compiled.
    SystemExit: with 128 + the signal after SIGTERM, Ctrl-C or SIGHUP; the state was
      saved.
  """
  folder = files.at(model_dir)
  check_feature_lengths(task_feature_lengths)
  configuration = config.text()

  def check(found: identity.Identity | None = None) -> None:
    folders.check(folder, configuration, train_steps, found)

  def load() -> backbone_load.Loaded:
    # A device would have no room for weights that are divided over many.
    with on_host():
      return backbone_load.load(initial_checkpoint_path, backbone, vocabulary, seed)

  def prepare() -> fit.Ready:
    # The rate holds for a backbone that states its own, too.
    recast = loaded.backbone.recast(dropout_rate=dropout_rate)
    model = PromptedModel(recast, prompt, pack_segments, head=head)
    sizes = task_feature_lengths["inputs"], task_feature_lengths["targets"]
    layout = Layout.of(model, *sizes, prompt_place, truncate)
    words = loaded.vocabulary
    taught = teaching.read(teachers or {}, loaded)
    return fit.prepare(
      model, loaded.params, words, task, layout, recipe, output, taught
    )

  with interrupt.before_training():
    distributed.by_first(check)
    if save_period is None:
      save_period = loop.save_period(train_steps, log_period)
    recipe = fit.Recipe(
      trainable=tuple(trainable),
      objective=objective,
      optimizer=optimizer,
      plan=loop.Plan(
        train_steps, log_period, eval_period, save_period, best_metric, patience
      ),
      batch_size=batch_size,
      eval_batch_size=eval_batch_size,
      eval_examples=eval_examples,
      microbatches=microbatches,
      pack_segments=pack_segments,
      buckets=buckets,
      cache_codes=cache_codes,
      seed=seed,
      dropout=dropout_rate > 0 or fit.drops(prompt, head),
      sharding=sharding,
    )
    # Nothing is written before all that can be refused has been, by any process.
    loaded = distributed.together(load)
    ready = distributed.together(prepare)
    hangs_on = distributed.together(
      lambda: identity.of(loaded, task, loaded.vocabulary, train_steps > 0)
    )
    settled = {"configuration": folders.settled(configuration)}
    distributed.same({**hangs_on, **settled})
    distributed.by_first(lambda: check(hangs_on))
  facts = fit.facts(loaded, method, ready.layout, task, configuration, output, recipe)
  return Job(folder, configuration, hangs_on, ready, facts, tensorboard).run()


def check_feature_lengths(lengths: Mapping[str, int]) -> None:
  """Raises ValueError unless there is one whole number for each side."""
  wrong = set(lengths) != {"inputs", "targets"}
  if wrong or not all(isinstance(value, int) for value in lengths.values()):
    raise ValueError(
      f"`TASK_FEATURE_LENGTHS` is {dict(lengths)}; it must name two whole numbers, "
      'such as {"inputs": 128, "targets": 8}.'
    )


if __name__ == "__main__":
  from prompt_tuning import train as verb

  config.run_verb(verb.train)

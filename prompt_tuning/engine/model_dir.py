"""MODEL_DIR: whose it is, what may change when its run goes on, and its one job."""

import contextlib
from collections.abc import Iterator
from typing import Any

from prompt_tuning.core import files
from prompt_tuning.engine import checkpoint, distributed, explain, identity, lock

# What a run writes, and replaces.
WRITES = (
  "checkpoints",
  "config.gin",
  "learning-curve.png",
  "metrics.jsonl",
  "model-info.txt",
  "phases",
  "prompt",
  identity.NAME,
)

_CONTENT = "its content is compared, see `engine.identity`"
_DEVICES = "the same run on other devices"
# Bindings that may change when a run is resumed, and why.
MAY_CHANGE = {
  "MODEL_DIR": "a folder may be moved",
  "TRAIN_STEPS": "a run may be made longer; fewer than are taken is refused",
  "EVAL_PERIOD": "when the best is looked for, not what is trained",
  "SAVE_PERIOD": "when it is saved",
  "LOG_PERIOD": "when it is told",
  "EVAL_EXAMPLES": "how much of the validation split is looked at",
  "EVAL_BATCH_SIZE": "rows that are evaluated at once, each on its own",
  "PATIENCE": "when to give up",
  "TENSORBOARD": "where it is told",
  "CACHE_CODES": "the same codes, made once or in every step",
  "MOST_LOGITS": "the same sum in other parts",
  "SHARDING": _DEVICES,
  "NUM_PARTITIONS": _DEVICES,
  "MODEL_PARALLEL_SUBMESH": _DEVICES,
  "REPLICAS": _DEVICES,
  "AXIS_RULES": _DEVICES,
  "TRAINABLE_RULES": _DEVICES,
  "INITIAL_CHECKPOINT_PATH": _CONTENT,
  "VOCABULARY_FILE": _CONTENT,
  "VOCABULARY": _CONTENT,
  "vocabularies.from_file.path": _CONTENT,
  "vocabularies.sentencepiece.path": _CONTENT,
  "DATA_DIR": _CONTENT,
  "TFDS_DATA_DIR": _CONTENT,
  "PRETRAIN_DIR": _CONTENT,
  "TRAIN_FILE": _CONTENT,
  "VALIDATION_FILE": _CONTENT,
  "files.Files.train": _CONTENT,
  "files.Files.validation": _CONTENT,
  "files.Files.directory": _CONTENT,
  "TEST_FILE": "no run reads it",
  "files.Files.test": "no run reads it",
}


# Arguments that runs of before bound to the verb itself, and where they are now.
_PLAN = {
  "train_steps": "steps",
  "log_period": "log_period",
  "eval_period": "eval_period",
  "save_period": "save_period",
  "best_metric": "metric",
  "patience": "patience",
}
_READING = {
  "task_feature_lengths": "lengths",
  "prompt_place": "place",
  "truncate": "truncate",
}
_ORIGIN = {
  "backbone": "backbone",
  "initial_checkpoint_path": "checkpoint",
  "vocabulary": "vocabulary",
}
_RECIPE = (
  "trainable objective optimizer batch_size eval_batch_size eval_examples microbatches "
  "pack_segments buckets cache_codes dropout_rate seed sharding"
).split()
MOVED = {
  **{f"train.train.{old}": f"loop.Plan.{new}" for old, new in _PLAN.items()},
  **{f"train.train.{old}": f"recipe.Reading.{new}" for old, new in _READING.items()},
  **{f"train.train.{old}": f"recipe.Origin.{new}" for old, new in _ORIGIN.items()},
  **{f"train.train.{name}": f"recipe.Recipe.{name}" for name in _RECIPE},
}
# Bindings that came with them: what a run of before would have said.
SINCE = {
  "RECIPE": "@recipe.Recipe()",
  "PROCEDURE": "None",
  "TEACHERS": "{}",
  "train.train.teachers": "%TEACHERS",
  "train.train.procedure": "%PROCEDURE",
  "READING": "@recipe.Reading()",
  "recipe.Recipe.plan": "@loop.Plan()",
  "train.train.recipe": "%RECIPE",
  "train.train.reading": "%READING",
  "train.train.origin": "@recipe.Origin()",
}


def modern(configuration: str) -> str:
  """A configuration that was written before records held a run's numbers, as today's.

  One of today is given back as it is.
  """
  found = explain.bindings(configuration)
  if not MOVED.keys() & found.keys():
    return configuration
  lines = {MOVED.get(name, name): value for name, value in found.items()}
  return "\n".join(f"{k} = {v}" for k, v in {**SINCE, **lines}.items())


def _may_change(configuration: str) -> tuple[str, ...]:
  """Bindings that may be others when a run goes on."""
  phased = explain.bindings(configuration).get("PROCEDURE", "None") != "None"
  # A phase that is done would have been shorter or longer.
  return tuple(name for name in MAY_CHANGE if not phased or name != "TRAIN_STEPS")


def settled(configuration: str) -> str:
  """The bindings of a configuration that may not change, as text."""
  found = explain.bindings(configuration, _may_change(configuration))
  return "\n".join(f"{name} = {value}" for name, value in sorted(found.items()))


def check(
  folder: Any, configuration: str, steps: int, found: identity.Identity | None = None
) -> None:
  """Refuses a MODEL_DIR that is out of reach, of another run, or of no run at all.

  Writes nothing.

  Args:
    folder: MODEL_DIR. configuration: the whole one, as text. steps: TRAIN_STEPS.
    found: what the run would hang on; None where that is not known yet.

  Raises:
    ValueError: saying what stands there.
  """
  if steps:
    checkpoint.check_place(folder)
  lock.check(folder)
  _check_run(folder, configuration, steps, found)


def _check_run(
  folder: Any, configuration: str, steps: int, found: identity.Identity | None
) -> None:
  written = folder / "config.gin"
  there = [name for name in WRITES if _stands(folder / name)]
  if "config.gin" not in there:
    if lock.foreign(folder):
      there.append(lock.NAME)
    if there:
      raise ValueError(
        f"`MODEL_DIR` {str(folder)!r} holds {', '.join(there)} without a config.gin, "
        "so what they belong to is unknown. Choose another folder, or move them away."
      )
    return
  before = modern(_read(written))
  free = _may_change(configuration)
  differ = explain.differing_lines(before, configuration, free)
  if differ:
    raise ValueError(
      f"`MODEL_DIR` {str(folder)!r} holds a run of another configuration "
      f"({'; '.join(differ[:5])}). Choose another folder, or remove that one."
    )
  identity.check(folder, found or {})
  taken = checkpoint.taken(folder / "checkpoints")
  if steps < taken:
    instead = (
      f"Give {taken} or more to go on."
      if steps
      else "Evaluate its prompt with python -m prompt_tuning.eval, or choose another "
      "folder for the model as it is before training."
    )
    raise ValueError(
      f"`TRAIN_STEPS` is {steps}, but the run in `MODEL_DIR` {str(folder)!r} has taken "
      f"{taken} steps. {instead}"
    )


def _read(path: Any) -> str:
  """The text of a run's config.gin."""
  try:
    text = path.read_bytes().decode("utf-8")
    if {"MODEL_DIR", "train.train.model_dir"} & explain.bindings(text).keys():
      return text
    what = "binds no MODEL_DIR"
  except UnicodeDecodeError:
    what = "is not UTF-8"
  except OSError as error:
    what = f"cannot be read ({error.strerror})"
  raise ValueError(
    f"{str(path)!r} {what}: it is damaged, or no run of this library wrote it. Bring "
    "back what it was, or choose another MODEL_DIR."
  )


def _stands(path: Any) -> bool:
  return path.exists() or (not files.is_remote(path) and path.is_symlink())


@contextlib.contextmanager
def entered(
  folder: Any, configuration: str, steps: int, found: identity.Identity
) -> Iterator[None]:
  """MODEL_DIR for this job alone, its configuration and identity written down.

  Arguments and errors are those of `check`.
  """
  with contextlib.ExitStack() as stack:

    def enter() -> None:
      stack.enter_context(lock.held(folder))
      # Once more, as nobody else can write there now.
      _check_run(folder, configuration, steps, found)
      best = folder / "checkpoints" / "best"
      for place in (folder, folder / "prompt", folder / "checkpoints", best):
        files.sweep(place)
      files.write_text(folder / "config.gin", configuration)
      identity.write(folder, found)

    distributed.by_first(enter)
    yield

"""Keywords of `tune` that stand for macros: which there are, and what they may hold."""

import contextlib
import difflib
import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from prompt_tuning.engine import config
from prompt_tuning.engine.loop import DivergedError

# Macros that `tune` does not take, and what to do instead.
REFUSED = {
  "tensorboard": "give recorder=, which is told every metric",
  "vocabulary": "the `model` argument brings its own",
  "initial_checkpoint_path": "the `model` argument says which backbone",
  "backbone": "the `model` argument says which backbone",
  "task": "the `train` and `validation` arguments are the task",
  "train_steps": "the `steps` argument says it",
  "prompt": "the `method` argument names it",
  "head": 'output="label" ("labels", "number") brings one',
  "prompt_init": "the `init` argument names it",
  "recipe": "each of its numbers is an argument of its own",
  "procedure": "it trains one phase. Run `python -m prompt_tuning.train`",
  "reading": "give task_feature_lengths=, prompt_place= or truncate=",
  "rule": "give optimizer=",
  "schedule": "change it by learning_rate= and warmup_steps=",
  "branch_schedules": "give optimizer=, an `engine.optimizer.Optimizer` that has them",
  "groups": "give optimizer=, an `engine.optimizer.Optimizer` that has them",
  "sharding": "change it by num_partitions=, replicas= and axis_rules=",
}
# Arguments of `tune` that are macros too.
NAMED = (
  "method",
  "seed",
  "labels",
  "metrics",
  "output",
  "optimizer",
  "objective",
  "teachers",
  "model_dir",
)
# Overrides that validation alone obeys.
VALIDATION = ("eval_period", "eval_examples", "best_metric", "patience", "decode_steps")
SIDES = ("inputs", "targets")


def checked(
  overrides: Mapping[str, Any], validated: bool, kept: bool = False
) -> dict[str, Any]:
  """The overrides in lower case, their values as gin can write them.

  Args:
    overrides: as given. validated: whether there is validation. kept: whether there is
      a folder for checkpoints.

  Raises:
    ValueError: for one that `tune` does not take, that does nothing without
      validation, or whose value is no plain number, text or list.
  """
  found: dict[str, Any] = {}
  for name, value in overrides.items():
    low = name.lower()
    if low in NAMED:
      raise ValueError(f"`{name}` is an argument of tune in lower case: {low}=.")
    if low in REFUSED:
      raise ValueError(f"`{name}` is not for tune: {REFUSED[low]}.")
    if low in found:
      raise ValueError(f"`{low}` is given twice, as {name} too. Give it once.")
    if low in VALIDATION and not validated:
      raise ValueError(
        f"`{name}` is about evaluation, but `validation` is None. Give validation "
        "pairs, or leave it out."
      )
    if low == "save_period" and not kept:
      raise ValueError(
        f"`{name}` is about checkpoints, but `model_dir` is None. Give model_dir=, or "
        "leave it out."
      )
    found[low] = _plain(name, value)
  rate = found.get("learning_rate", 1.0)
  if isinstance(rate, bool) or not isinstance(rate, int | float) or rate < 0:
    raise ValueError(f"`learning_rate` is {rate!r}; it must be a positive number.")
  if "task_feature_lengths" in found:
    _check_lengths(found["task_feature_lengths"])
  return found


def _plain(name: str, value: Any) -> Any:
  if isinstance(value, np.generic | np.ndarray):
    value = value.tolist()
  if isinstance(value, float) and not math.isfinite(value):
    raise ValueError(f"`{name}` is {value}; it must be finite.")
  if isinstance(value, list | tuple):
    return type(value)(_plain(name, item) for item in value)
  if isinstance(value, dict):
    return {_plain(name, key): _plain(name, item) for key, item in value.items()}
  if value is None or isinstance(value, bool | int | float | str):
    return value
  raise ValueError(
    f"`{name}` is {value!r}; it must be a number, a text, None, or lists of these."
  )


def _check_lengths(lengths: Any) -> None:
  fits = isinstance(lengths, dict) and lengths and set(lengths) <= set(SIDES)
  if not fits or not all(
    isinstance(size, int) and not isinstance(size, bool) and size >= 1
    for size in lengths.values()
  ):
    raise ValueError(
      f"`task_feature_lengths` is {lengths!r}; it must hold whole numbers from 1, such "
      'as {"inputs": 128, "targets": 8}. A side left out holds its examples whole.'
    )


def check_reached(
  given: Collection[str], names: Collection[str], reached: Collection[str], method: str
) -> None:
  """Refuses overrides that do not exist, or that would do nothing.

  Args:
    given: macros that are overridden. names: those of the configuration.
    reached: those that the run is made of. method: its name.
  """
  fit = {name.lower() for name in reached} - set(REFUSED) - set(NAMED)
  known = sorted(fit | {"steps", *NAMED})
  for name in given:
    low = name.lower()
    if name not in names:
      close = difflib.get_close_matches(low, known, 1, 0.6)
      hint = f" Did you mean {close[0]!r}?" if close else ""
      raise ValueError(
        f"tune has no argument {low!r} with the method {method!r}.{hint}"
      )
    if name not in reached:
      raise ValueError(
        f"`{low}` would do nothing with the method {method!r} and what else is given. "
        "Leave it out."
      )


@contextlib.contextmanager
def in_words() -> Iterator[None]:
  """Errors within speak of keywords, not of macros or gin."""
  try:
    yield
  except ValueError as error:
    text = translated(str(error))
    if text == str(error):
      raise
    kinds = (DivergedError, config.ConfigError)
    kind = next((kind for kind in kinds if isinstance(error, kind)), ValueError)
    raise kind(text) from error


def translated(text: str) -> str:
  """A message about macros, in terms of the arguments of `tune`."""
  text = text.strip().split("\n  In call to configurable")[0]
  unset = re.match(r"These macros must be set: ([\w, ]+)\.", text)
  if unset:
    names = unset.group(1).lower().split(", ")
    text = f"The method needs {' and '.join(f'`{name}`' for name in names)}: give "
    return text + ", ".join(f"{name}=..." for name in names) + " to tune."
  text = text.replace(" (include a file of gin/outputs/)", "")
  text = re.sub(r"\bLists\.(?=\w)", "", text)

  def keyword(match: re.Match) -> str:
    name = match.group().lower()
    return {"train_steps": "steps"}.get(name, name)

  # Words that hold `_`, and those that stand in backticks or before `=`.
  word = r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b"
  other = r"(?<=`)[A-Z]{3,}(?=`)|\b[A-Z]{3,}(?= = )|\bOUTPUT\b"
  return re.sub(f"{word}|{other}", keyword, text)

"""`tune` with a folder: a run as `train` writes it, which goes on where it stopped."""

import dataclasses
import os
import reprlib
import signal
from collections.abc import Mapping, Sequence
from typing import Any

from prompt_tuning.core import files
from prompt_tuning.engine import history, identity, interrupt, model_dir, product
from prompt_tuning.engine.job import Job
from prompt_tuning.engine.made import Made
from prompt_tuning.engine.product import Product
from prompt_tuning.engine.ready import Ready


def place(value: Any) -> str | None:
  """`model_dir` as a text; raises ValueError for what is no path."""
  if value is None:
    return None
  if not isinstance(value, str | os.PathLike) or not os.fspath(value):
    raise ValueError(
      f"`model_dir` is {reprlib.repr(value)}; it must be the path of a run's folder, "
      "or None to write nothing."
    )
  return os.fspath(value)


def run(
  path: str,
  configuration: str,
  loaded: Any,
  task: Any,
  ready: Ready,
  card: Mapping[str, Any],
  watch: Any,
  objects: Sequence[str],
) -> Product:
  """Trains into a folder, from its newest checkpoint; the prompt of its best step.

  Args:
    path: MODEL_DIR. configuration: all of it, as text. loaded: the backbone.
    task: the examples. ready: of `engine.ready.prepare`. card: what the product says.
    watch: told of metrics and words. objects: arguments that the text cannot say.

  Raises:
    ValueError: if the folder holds another run, or an argument is an object.
    KeyboardInterrupt: after Ctrl-C; the state was saved.
  """
  if objects:
    raise ValueError(
      f"`{objects[0]}` is given as an object, which a run in `model_dir` could not "
      "compare when it goes on. Name it by a text, or leave model_dir out."
    )
  folder, steps = files.at(path), ready.recipe.plan.steps
  if not steps:
    raise ValueError(
      f"`model_dir` is {path!r}, but nothing trains (`steps` is 0, or the method has "
      "nothing to train). Leave it out."
    )
  hangs_on = identity.of(loaded, task, loaded.vocabulary, True)
  model_dir.check(folder, configuration, steps, hangs_on)
  job = Job(folder, configuration, hangs_on, ready, dict(card), False, watch)
  try:
    job.run()
  except SystemExit as stop:
    if stop.code != interrupt.CODES[signal.SIGINT]:
      raise
    words = "Told to end, and saved. The same call of tune goes on."
    raise KeyboardInterrupt(words) from stop
  made = product.load(folder)
  return dataclasses.replace(made, made=Made(history.near(path)))

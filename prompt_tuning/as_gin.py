"""The gin text of a run of `train` that makes what a call of `tune` made."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from prompt_tuning.engine import optimizer
from prompt_tuning.engine.listed import Text
from prompt_tuning.sources import Source
from prompt_tuning.wishes import Wish

# Macros that a run gets otherwise than `tune`.
ELSEWHERE = ("MODEL_DIR", "TASK", "INITIAL_CHECKPOINT_PATH", "LABELS", "METRICS")


def text(
  loaded: Any,
  wish: Wish,
  files: Sequence[str],
  bindings: Mapping[str, Any],
  sources: Mapping[str, Source],
  by_hand: Sequence[str],
) -> Text:
  """A recipe that parses as it stands and wants only MODEL_DIR.

  Args:
    loaded: the backbone. wish: what was asked. files: gin files that it is made of.
    bindings: macro -> value. sources: the examples of each split.
    by_hand: arguments that were given as objects.

  Raises:
    ValueError: for what gin cannot say.
  """
  if by_hand:
    raise ValueError(
      f"`{by_hand[0]}` was given as an object, which gin's text cannot say. Name it "
      'by a text, such as optimizer="adamw", or write its gin by hand.'
    )
  if loaded.name == "random":
    raise ValueError("The backbone was drawn at random: there is no file to name.")
  _check_switches(loaded)
  head = [f'include "{name}"' for name in files]
  task, imports = _task(wish, sources)
  lines = [f"INITIAL_CHECKPOINT_PATH = {loaded.name!r}", *_vocabulary(loaded)]
  lines += [
    f"{name} = {value!r}" for name, value in bindings.items() if name not in ELSEWHERE
  ]
  if isinstance(wish.optimizer, str):
    imports = [*imports, "from prompt_tuning.engine import optimizer"]
    lines.append(f"RULE = @optimizer.{optimizer.named(wish.optimizer)}()")
  return Text(
    "\n".join(
      [
        f"# {wish.method} on {loaded.name}, as pt.tune trained it.",
        "#   python -m prompt_tuning.train --gin_file=THIS_FILE "
        "--gin.MODEL_DIR=\"'runs/name'\"",
        "from __gin__ import dynamic_registration",
        *imports,
        *head,
        *task,
        *lines,
      ]
    )
    + "\n"
  )


def _task(
  wish: Wish, sources: Mapping[str, Source]
) -> tuple[Sequence[str], Sequence[str]]:
  """The lines of the task, and the imports that they need."""
  task = wish.task
  labels = None if task.labels is None else list(task.labels)
  said = {"labels": labels, "metrics": list(task.metrics), "separator": task.separator}
  if all(source.path for source in sources.values()):
    source = sources["train"]
    name = "files"
    said |= {"inputs": source.inputs, "targets": source.targets}
    said |= {split: one.path for split, one in sources.items()}
    kind = "files.Files"
  else:
    name = "tabular" if sources["train"].inputs else "lists"
    kind = "tabular.Tabular" if sources["train"].inputs else "lists.Lists"
    if sources["train"].inputs:
      said |= {"inputs": sources["train"].inputs, "targets": sources["train"].targets}
    said |= {split: list(one.pairs) for split, one in sources.items()}
  said["name"] = task.name
  lines = [f"LABELS = {labels!r}", f"TASK = @{kind}()", f"{kind}:"]
  lines += [f"  {key} = {value!r}" for key, value in said.items()]
  return lines, [f"from prompt_tuning.data import {name}"]


def _vocabulary(loaded: Any) -> list[str]:
  """VOCABULARY, where it does not lie beside the weights."""
  path = loaded.vocabulary_path
  if path is None or loaded.name == "mini":
    return []
  beside = pathlib.Path(path).resolve().parent == pathlib.Path(loaded.name).resolve()
  return [] if beside else [f"VOCABULARY = {str(path)!r}"]


def _check_switches(loaded: Any) -> None:
  """Raises ValueError for switches of the backbone that no file here states."""
  for name, own in (("dtype", "float32"), ("weights_dtype", None)):
    found = loaded.backbone.switches.get(name)
    if found != own:
      macro = {"dtype": "ACTIVATION_DTYPE"}.get(name, name.upper())
      raise ValueError(
        f"The model was loaded with {name}={found!r}, which a run states as {macro} of "
        "a file of gin/backbones/. Load it without, or write that gin by hand."
      )

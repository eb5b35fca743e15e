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
# How such a recipe begins.
HEAD = "# Made by prompt_tuning:"


def text(
  wish: Wish,
  files: Sequence[str],
  bindings: Mapping[str, Any],
  sources: Mapping[str, Source],
  backbone: str,
  vocabulary: str | None,
) -> Text:
  """A recipe that parses as it stands and wants only MODEL_DIR.

  Args:
    wish: what was asked. files: gin files that it is made of.
    bindings: macro -> value. sources: the examples of each split.
    backbone: name or folder. vocabulary: path of its tokeniser, or None.
  """
  task, imports = _task(wish, sources)
  words = [] if _is_beside(vocabulary, backbone) else [f"VOCABULARY = {vocabulary!r}"]
  lines = [f"INITIAL_CHECKPOINT_PATH = {backbone!r}", *words]
  lines += [
    f"{name} = {value!r}" for name, value in bindings.items() if name not in ELSEWHERE
  ]
  if isinstance(wish.optimizer, str):
    imports = [*imports, "from prompt_tuning.engine import optimizer"]
    lines.append(f"RULE = @optimizer.{optimizer.named(wish.optimizer)}()")
  return Text(
    "\n".join(
      [
        f"{HEAD} {wish.method} on {backbone}.",
        "#   python -m prompt_tuning.train --gin_file=THIS_FILE "
        "--gin.MODEL_DIR=\"'runs/name'\"",
        *(["from __gin__ import dynamic_registration", *imports] if imports else []),
        *(f'include "{name}"' for name in files),
        *task,
        *lines,
      ]
    )
    + "\n"
  )


def of_call(
  loaded: Any,
  wish: Wish,
  files: Sequence[str],
  bindings: Mapping[str, Any],
  sources: Mapping[str, Source],
  by_hand: Sequence[str],
) -> Text:
  """The recipe of a call of `tune`; arguments as of `text`.

  Args:
    loaded: the backbone. by_hand: arguments that were given as objects.

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
  return text(wish, files, bindings, sources, loaded.name, loaded.vocabulary_path)


def _task(
  wish: Wish, sources: Mapping[str, Source]
) -> tuple[Sequence[str], Sequence[str]]:
  """The lines of the task, and the imports that they need."""
  task, first = wish.task, sources["train"]
  labels = None if task.labels is None else list(task.labels)
  if all(source.path for source in sources.values()):
    said = {f"{split.upper()}_FILE": one.path for split, one in sources.items()}
    said = {"VALIDATION_FILE": None, **said, "INPUTS": first.inputs}
    said |= {"TARGETS": first.targets, "LABELS": labels, "METRICS": list(task.metrics)}
    said |= {"LABEL_SEPARATOR": task.separator}
    lines = [f"{name} = {value!r}" for name, value in said.items()]
    return ['include "gin/tasks/files.gin"', *lines], ()
  name, kind = "lists", "lists.Lists"
  said = {"labels": labels, "metrics": list(task.metrics), "separator": task.separator}
  if first.inputs is not None:
    name, kind = "tabular", "tabular.Tabular"
    said |= {"inputs": first.inputs, "targets": first.targets}
  said |= {split: list(one.pairs) for split, one in sources.items()}
  lines = [f"LABELS = {labels!r}", f"TASK = @{kind}()", f"{kind}:"]
  lines += [f"  {key} = {value!r}" for key, value in said.items()]
  return lines, [f"from prompt_tuning.data import {name}"]


def _is_beside(vocabulary: str | None, backbone: str) -> bool:
  """Whether a tokeniser is the one that lies beside the weights."""
  if vocabulary is None or backbone == "mini":
    return True
  return pathlib.Path(vocabulary).resolve().parent == pathlib.Path(backbone).resolve()


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

"""Where a run of T5X starts: the checkpoint, its architecture, the first prompt."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.core import files
from prompt_tuning.core.model import Params, PromptedModel
from prompt_tuning.core.trainable import flatten, unflatten
from prompt_tuning.interop import places, t5x
from prompt_tuning.interop.source import Source

TABLE = "token_embedder/embedding"


def checkpoint(path: str | None) -> str | None:
  """The folder of a checkpoint's step, as T5X wants it.

  Args:
    path: the model's folder, its step's folder or the file `checkpoint`, local or
      remote; None for none.

  Raises:
    ValueError: if there is no T5X checkpoint.
  """
  if path is None:
    return None
  found = t5x.find(_place(path))
  if found is None:
    raise ValueError(
      f"`INITIAL_CHECKPOINT_PATH` (or `CHECKPOINT_PATH`) is {path!r}, which is no T5X "
      "checkpoint, and T5X restores no other. Give the folder of a model or of a step; "
      "`prompt_tuning.interop.t5x.write_legacy` writes one of any backbone."
    )
  return str(found if files.is_remote(path) else found.absolute())


def source(path: str | None) -> Source:
  """The arrays and prompts of a checkpoint; none is read."""
  return t5x.open_source(_place(checkpoint(path)))


def _place(path: str) -> Any:
  return places.find(path) if files.is_remote(path) else pathlib.Path(path)


def architecture(path: str | None) -> T5:
  """The backbone that a checkpoint states."""
  if path is None:
    raise ValueError(
      "`BACKBONE` is None, and without INITIAL_CHECKPOINT_PATH nothing states the "
      "architecture. Include a file of gin/backbones/."
    )
  return T5(source(path).config)


def table(path: str) -> Any:
  """The token table [V H] of a checkpoint; nothing else of it is read."""
  return source(path).arrays[TABLE].read()


def draw(
  model: PromptedModel,
  table_VH: Any,
  encode: Callable[[str], Sequence[int]],
  seed: int,
) -> Params:
  """The prompt that `engine.fit` starts from, drawn on a token table alone.

  Args:
    model: whose prompt it is. table_VH: token table. encode: text -> piece ids.
    seed: `SEED`.
  """

  @jax.jit
  def first(table_VH):
    shapes = flatten(model.backbone.shapes())
    # How a prompt starts depends on no other weight.
    weights = {path: jnp.zeros(leaf.shape) for path, leaf in shapes.items()}
    weights[TABLE] = table_VH
    key = jax.random.fold_in(jax.random.key(seed), 1)
    return model.init_prompt(key, unflatten(weights), encode)

  return first(jnp.asarray(table_VH))


def check(
  backbone: T5, prompt: Any, output: Any, labels: Any, head: Any = None
) -> None:
  """Refuses what T5X cannot run, before anything is made.

  Raises:
    ValueError: naming the setting and what to do.
  """
  if head is not None:
    raise ValueError(
      "`HEAD` is given, but T5X trains no head: its predictions are ids. Train it with "
      "`python -m prompt_tuning.train`."
    )
  if backbone.config.scan_layers:
    raise ValueError(
      "`SCAN_LAYERS` is True, but T5X's checkpoints hold one branch a layer. Set it to "
      "False, or train with `python -m prompt_tuning.train`."
    )
  if prompt is not None and prompt.external_width:
    raise ValueError(
      "The prompt reads external vectors, which SeqIO's pipeline for T5X does not "
      "carry. Train it with `python -m prompt_tuning.train`."
    )
  if prompt is not None and prompt.tasks:
    raise ValueError(
      "The prompt reads the task of each example, which SeqIO's pipeline for T5X does "
      "not carry. Train it with `python -m prompt_tuning.train`."
    )
  if output is not None:
    output.check(None, labels)

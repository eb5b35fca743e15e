"""Files of T5: folders of ours, of Hugging Face, and checkpoints of T5X."""

from collections.abc import Mapping
from typing import Any

import jax

from prompt_tuning.backbones.common import int8
from prompt_tuning.backbones.t5 import files
from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.backbones.t5.stacking import unrolled
from prompt_tuning.interop import huggingface, own, t5x
from prompt_tuning.interop import source as sources
from prompt_tuning.interop.source import Source

NAME = T5.family
LOOKED_FOR = (
  "of a T5, a folder that this library saved, a Hugging Face folder (model_type t5 or "
  "mt5), or a T5X checkpoint"
)
MODEL_TYPES = huggingface.FAMILIES
FORMAT = files.FORMAT


def open_source(place: Any, expected: T5 | None = None) -> Source | None:
  """Recognises a T5; no weights are read. None for what is none.

  Args:
    place: `pathlib.Path` or `epath.Path`.
    expected: bound architecture; it says what a T5X checkpoint does not.

  Raises:
    ValueError: if it is one, and damaged.
  """
  if huggingface.recognises(place):
    return huggingface.open_source(place)
  step = t5x.find(place)
  if step is not None:
    bound = isinstance(expected, T5)
    distance = (expected.config.relative_max_distance,) if bound else ()
    return t5x.open_source(step, *distance)
  return own.open_source(place) if own.recognises(place) else None


def load(
  opened: Source, expected: T5 | None, shardings: Any, dtype: Any
) -> tuple[T5, Any]:
  """See `interop.source.load`."""
  return sources.load(opened, expected, shardings, dtype)


def narrowed(backbone: T5, params: Any) -> tuple[Any, Any]:
  """Drawn weights as int8, and the arrays that they were."""
  del backbone
  return int8.tree(params), unrolled(jax.device_get(params))


def fingerprint(params: Any) -> str:
  """See `backbones.t5.files.fingerprint`."""
  return files.fingerprint(params)


def digest(arrays: Mapping[str, Any]) -> str:
  """See `backbones.t5.files.digest`."""
  return files.digest(arrays)

"""A backbone by name or path: architecture, weights, vocabulary, fingerprint."""

import dataclasses
import functools
import math
import pathlib
from typing import Any

import jax

from prompt_tuning.backbones.t5 import files, int8
from prompt_tuning.backbones.t5.stacking import unrolled
from prompt_tuning.interop import huggingface, lazy, own, places, source, t5x
from prompt_tuning.interop.vocabulary import (
  beside,
  check_vocabulary,
  located,
  made,
  path_of,
)

MINI = pathlib.Path(__file__).resolve().parent.parent / "demo" / "mini"


@dataclasses.dataclass(frozen=True)
class Loaded:
  """Attributes:
  backbone: pure functions (`backbones.t5.backbone.T5`).
  params: its weights. vocabulary: its own, ours or SeqIO's.
  name: what the user called it. vocabulary_path: file of the vocabulary, if any.
  stored: the arrays in the files, where `params` holds them as int8; else None.
  """

  backbone: Any
  params: Any
  vocabulary: Any
  name: str
  vocabulary_path: str | None = None
  stored: Any = None

  @functools.cached_property
  def fingerprint(self) -> str:
    """Digest of the weights, whatever they were rounded to."""
    if self.stored is not None:
      return files.digest(self.stored)
    return files.fingerprint(self.params)


def load(
  path: str | None,
  backbone: Any = None,
  vocabulary: Any = None,
  seed: int = 0,
  shardings: Any = None,
  weights_dtype: Any = None,
) -> Loaded:
  """Loads weights, or draws them where `path` is None.

  Args:
    path: "mini", a folder that this library saved, a Hugging Face folder, a T5X
      checkpoint (its folder, its step's folder, or the file `checkpoint`), local or
      remote (gs://...), or `owner/name` of the Hugging Face Hub; None for random
      weights.
    backbone: architecture that the folder must have, with switches to apply.
    vocabulary: see `vocabulary.located`; None takes the folder's spiece.model or
      tokenizer.json.
    seed: of random weights.
    shardings, weights_dtype: see `shardings` and `dtype` of `source.load`.

  Raises:
    ValueError: if something is missing or does not fit.
  """
  if backbone is not None:
    backbone.check_device()
  vocabulary = located(vocabulary)
  if path is None:
    if backbone is None or vocabulary is None:
      raise ValueError(
        "`INITIAL_CHECKPOINT_PATH` is None, so `BACKBONE` and `VOCABULARY` must be "
        "bound: include a file of gin/backbones/ and bind a vocabulary."
      )
    vocabulary = made(vocabulary, backbone.spec.vocabulary)
    check_vocabulary(backbone.spec.vocabulary, vocabulary, "random", math.inf)
    params = backbone.init(jax.random.key(seed))
    if "int8" not in (weights_dtype, backbone.config.weights_dtype):
      return Loaded(backbone, params, vocabulary, "random")
    arrays = unrolled(jax.device_get(params))
    return Loaded(backbone, int8.tree(params), vocabulary, "random", stored=arrays)
  opened = open_source(MINI if path == "mini" else places.find(path), backbone)
  rows = opened.config.vocab_size
  if vocabulary is None:
    if opened.vocabulary is None:
      raise ValueError(
        f"{str(opened.path)!r} holds no spiece.model and no tokenizer.json; give the "
        "path of one: --gin.VOCABULARY=\"'PATH'\", --vocabulary=PATH to export, or "
        "`load_model(..., vocabulary=PATH)` in Python."
      )
    vocabulary = beside(opened.vocabulary, rows)
  vocabulary = made(vocabulary, rows)
  # Before gigabytes are read.
  check_vocabulary(rows, vocabulary, path)
  found, params = source.load(opened, backbone, shardings, weights_dtype)
  narrow = weights_dtype or found.config.weights_dtype
  stored = opened.arrays if narrow == "int8" else None
  return Loaded(found, params, vocabulary, path, path_of(vocabulary), stored)


def open_source(place: Any, backbone: Any = None) -> source.Source:
  """Recognises a backbone on disk; no weights are read.

  Args:
    place: `pathlib.Path` or `epath.Path`.
    backbone: bound architecture; it says what a T5X checkpoint does not.

  Raises:
    ValueError: if it is none, or damaged.
  """
  with lazy.readable(place):
    foreign = open_foreign(place, backbone)
    if foreign is not None:
      return foreign
    if own.recognises(place):
      return own.open_source(place)
    raise ValueError(f"`INITIAL_CHECKPOINT_PATH` is {str(place)!r}, {_instead(place)}")


def open_foreign(place: Any, backbone: Any = None) -> source.Source | None:
  """A T5X checkpoint or a Hugging Face folder, or None for what is neither.

  Arguments are those of `open_source`.
  """
  if huggingface.recognises(place):
    return huggingface.open_source(place)
  step = t5x.find(place)
  if step is None:
    return None
  if backbone is None:
    return t5x.open_source(step)
  return t5x.open_source(step, backbone.config.relative_max_distance)


def _instead(place: Any) -> str:
  """What a path is that is no backbone."""
  fix = (
    "Give a folder that this library saved, a Hugging Face folder, a T5X checkpoint, "
    "owner/name of the Hugging Face Hub, or 'mini'."
  )
  if not place.exists():
    return f"which does not exist: no config.json, no checkpoint. {fix}"
  if not place.is_dir():
    return f"a file, not a folder with a config.json. {fix}"
  if (place / "adapter_config.json").is_file() or (place / "card.json").is_file():
    return "which is a prompt: give it as `PROMPT_DIR`, or to `load_prompt`."
  if t5x.is_mesh_tensorflow(place) or any(place.glob("*.ckpt-*.index")):
    return (
      "which is a checkpoint of Mesh TensorFlow. T5X reads those: load it there, and "
      "save it again."
    )
  if "tmp" in place.name or any("tmp" in path.name for path in place.iterdir()):
    return f"which holds no config.json, only what a write left unfinished. {fix}"
  return f"which holds no config.json and no checkpoint. {fix}"

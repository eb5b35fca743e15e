"""A backbone by name or path: architecture, weights, vocabulary, fingerprint."""

import dataclasses
import functools
import math
import pathlib
from typing import Any

import jax

from prompt_tuning.core.folders import current
from prompt_tuning.interop import families, lazy, packaged, places, t5x, untrusted
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
  backbone: pure functions, see `core.backbone`.
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
    family = families.of(self.backbone.family)
    if self.stored is not None:
      return family.digest(self.stored)
    return family.fingerprint(self.params)


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
    path: "mini"; "minilm" or "smollm2", of packages (see `packaged`); a folder that
      this library saved, a Hugging Face folder, a T5X checkpoint (its folder, its
      step's folder, or the file `checkpoint`) or a GGUF file, local or remote; an id of
      the Hugging Face Hub; or None for random weights.
    backbone: architecture that the folder must have, with switches to apply.
    vocabulary: see `vocabulary.located`; None takes the folder's spiece.model or
      tokenizer.json.
    seed: of random weights.
    shardings, weights_dtype: see `shardings` and `dtype` of `source.load`; the first a
      function of the backbone, or None.

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
    check_vocabulary(backbone.spec, vocabulary, "random", math.inf)
    params = backbone.init(jax.random.key(seed))
    if "int8" not in (weights_dtype, backbone.switches["weights_dtype"]):
      return Loaded(backbone, params, vocabulary, "random")
    params, arrays = families.of(backbone.family).narrowed(backbone, params)
    return Loaded(backbone, params, vocabulary, "random", stored=arrays)
  family, opened = found_at(_named(path), backbone)
  rows = opened.spec.vocabulary
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
  check_vocabulary(opened.spec, vocabulary, path)
  found, params = family.load(opened, backbone, shardings, weights_dtype)
  narrow = weights_dtype or found.switches["weights_dtype"]
  stored = opened.arrays if narrow == "int8" else None
  return Loaded(found, params, vocabulary, path, path_of(vocabulary), stored)


def _named(path: str) -> Any:
  """The place of a backbone: by a name of this library's, or as `places.find`."""
  if path == "mini":
    return MINI
  return packaged.find(path) if path in packaged.KNOWN else places.find(path)


def found_at(place: Any, backbone: Any = None) -> tuple[Any, Any]:
  """(family, what it opened) of a backbone on disk; no weights are read.

  Args:
    place: `pathlib.Path` or `epath.Path`.
    backbone: bound architecture; it says what some checkpoints do not.

  Raises:
    ValueError: if it is none that some family knows, or damaged.
  """
  with lazy.readable(place):
    for family in families.KNOWN:
      opened = family.open_source(place, backbone)
      if opened is not None:
        if backbone is not None and backbone.family != family.NAME:
          raise ValueError(
            f"`BACKBONE` is of the family {backbone.family}, but {str(place)!r} holds "
            f"one of {family.NAME}. Include a gin file of its own family, or leave "
            "BACKBONE unset to read it from the folder."
          )
        return family, opened
    _check_config(place)
    raise ValueError(f"`INITIAL_CHECKPOINT_PATH` is {str(place)!r}, {_instead(place)}")


def open_source(place: Any, backbone: Any = None) -> Any:
  """What `found_at` opened: a `families.Opened`."""
  return found_at(place, backbone)[1]


def _check_config(place: Any) -> None:
  """Raises UnreadableError for a config.json that no family knows."""
  path = current(place, "config.json")
  if not path.is_file():
    return
  fields = untrusted.read_object(path)
  known = f"This library reads, {families.looked_for()}."
  if "model_type" in fields:
    raise lazy.UnreadableError(
      f"{str(path)!r} says model_type {fields['model_type']!r}. {known}"
    )
  formats = ", ".join(f'"{family.FORMAT}"' for family in families.KNOWN)
  raise lazy.UnreadableError(
    f'{str(path)!r} does not say "format": {formats}, so it is not a folder that this '
    f"library saved. {known}"
  )


def _instead(place: Any) -> str:
  """What a path is that is no backbone."""
  names = ", ".join(map(repr, ["mini", *packaged.KNOWN]))
  hub = "owner/name of the Hugging Face Hub"
  fix = f"Give {names}, {hub}, or, {families.looked_for()}."
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

"""A backbone by name or path: architecture, weights, vocabulary, fingerprint."""

import dataclasses
import functools
import math
import pathlib
from typing import Any

import jax

from prompt_tuning.backbones.t5 import files, int8
from prompt_tuning.backbones.t5.stacking import unrolled
from prompt_tuning.data import vocabularies
from prompt_tuning.interop import huggingface, lazy, own, places, source, t5x

MINI = pathlib.Path(__file__).resolve().parent.parent / "demo" / "mini"
# Rows beyond the ids: to a multiple of 128, and 100 or 125 sentinels.
PADDING = 255


@dataclasses.dataclass(frozen=True)
class Loaded:
  """Attributes:
  backbone: pure functions (`backbones.t5.backbone.T5`).
  params: its weights. vocabulary: its SeqIO vocabulary.
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
    vocabulary: SeqIO vocabulary; None takes spiece.model from the folder.
    seed: of random weights.
    shardings, weights_dtype: see `shardings` and `dtype` of `source.load`.

  Raises:
    ValueError: if something is missing or does not fit.
  """
  if backbone is not None:
    backbone.check_device()
  if path is None:
    if backbone is None or vocabulary is None:
      raise ValueError(
        "`INITIAL_CHECKPOINT_PATH` is None, so `BACKBONE` and `VOCABULARY` must be "
        "bound: include a file of gin/backbones/ and bind a vocabulary."
      )
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
        f"{str(opened.path)!r} holds no {files.VOCABULARY}; bind `VOCABULARY` to "
        "@vocabularies.sentencepiece() with its path."
      )
    vocabulary = beside(opened.vocabulary, rows)
  # Before gigabytes are read.
  check_vocabulary(rows, vocabulary, path)
  found, params = source.load(opened, backbone, shardings, weights_dtype)
  where = None if opened.vocabulary == "bytes" else opened.vocabulary
  narrow = weights_dtype or found.config.weights_dtype
  stored = opened.arrays if narrow == "int8" else None
  return Loaded(found, params, vocabulary, path, where, stored)


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


def beside(where: str, rows: int) -> Any:
  """The vocabulary beside the weights; its file may count the sentinels already."""
  if where == "bytes":
    return vocabularies.byte()
  found = vocabularies.sentencepiece(where)
  plain = vocabularies.sentencepiece(where, extra_ids=0)
  try:
    return plain if plain.vocab_size <= rows < found.vocab_size else found
  except Exception as error:  # sentencepiece raises RuntimeError, TensorFlow its own
    raise source.UnreadableError(
      f"{where!r} is no SentencePiece model: {error}."
    ) from error


def check_vocabulary(
  rows: int, vocabulary: Any, name: str, padding: float = PADDING
) -> None:
  """Refuses a vocabulary that is another backbone's.

  Args:
    rows: of the token table. vocabulary: SeqIO's. name: of the backbone.
    padding: rows without an id that are understood, as 32128 rows for 32100 ids.

  Raises:
    ValueError: if there are more ids than rows, or far fewer.
  """
  ids = vocabulary.vocab_size
  if ids > rows or ids < rows - padding:
    raise ValueError(
      f"The vocabulary has {ids} ids, but the backbone {name!r} has {rows} rows: it is "
      "another backbone's vocabulary. Bind `VOCABULARY` to its own, with `extra_ids` "
      "if its sentinels are counted otherwise."
    )

"""A backbone by name or path: architecture, weights, vocabulary, fingerprint."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax

from prompt_tuning.backbones.t5 import files
from prompt_tuning.data import vocabularies
from prompt_tuning.interop import huggingface, source, t5x

MINI = pathlib.Path(__file__).resolve().parent.parent / "demo" / "mini"


@dataclasses.dataclass(frozen=True)
class Loaded:
  """Attributes:
  backbone: pure functions (`backbones.t5.backbone.T5`).
  params: its weights. vocabulary: its SeqIO vocabulary.
  name: what the user called it. vocabulary_path: file of the vocabulary, if any.
  """

  backbone: Any
  params: Any
  vocabulary: Any
  name: str
  vocabulary_path: str | None = None

  @functools.cached_property
  def fingerprint(self) -> str:
    """Digest of the weights."""
    return files.fingerprint(self.params)


def load(
  path: str | None,
  backbone: Any = None,
  vocabulary: Any = None,
  seed: int = 0,
) -> Loaded:
  """Loads weights, or draws them where `path` is None.

  Args:
    path: "mini", a folder that this library saved, a Hugging Face folder, or a T5X
      checkpoint (its folder, its step's folder, or the file `checkpoint`); None for
      random weights.
    backbone: architecture that the folder must have, with switches to apply.
    vocabulary: SeqIO vocabulary; None takes spiece.model from the folder.
    seed: of random weights.

  Raises:
    ValueError: if something is missing or does not fit.
  """
  if path is None:
    if backbone is None or vocabulary is None:
      raise ValueError(
        "`INITIAL_CHECKPOINT_PATH` is None, so `BACKBONE` and `VOCABULARY` must be "
        "bound: include a file of gin/backbones/ and bind a vocabulary."
      )
    params = backbone.init(jax.random.key(seed))
    return checked(Loaded(backbone, params, vocabulary, "random"))
  folder = MINI if path == "mini" else pathlib.Path(path)
  foreign = open_foreign(folder, backbone)
  if foreign is None:
    found, params = files.load(folder, backbone)
    beside = folder / files.VOCABULARY
    where = str(beside) if beside.is_file() else None
  else:
    found, params = source.load(foreign, backbone)
    where = foreign.vocabulary
  if vocabulary is None:
    if where is None:
      raise ValueError(
        f"{str(folder)!r} holds no {files.VOCABULARY}; bind `VOCABULARY` to "
        "@vocabularies.sentencepiece() with its path."
      )
    vocabulary = (
      vocabularies.byte() if where == "bytes" else vocabularies.sentencepiece(where)
    )
  where = None if where == "bytes" else where
  return checked(Loaded(found, params, vocabulary, path, where))


def open_foreign(folder: pathlib.Path, backbone: Any = None) -> source.Source | None:
  """A T5X checkpoint or a Hugging Face folder, or None for what is neither.

  Args:
    folder: see `load`.
    backbone: bound architecture; it says what a T5X checkpoint does not.
  """
  if huggingface.recognises(folder):
    return huggingface.open_source(folder)
  step = t5x.find(folder)
  if step is None:
    return None
  if backbone is None:
    return t5x.open_source(step)
  return t5x.open_source(step, backbone.config.relative_max_distance)


def checked(loaded: Loaded) -> Loaded:
  """Refuses a vocabulary with more ids than the backbone has rows."""
  rows, ids = loaded.backbone.spec.vocabulary, loaded.vocabulary.vocab_size
  if ids > rows:
    raise ValueError(
      f"The vocabulary has {ids} ids, but the backbone {loaded.name!r} has {rows} "
      "rows: it is another backbone's vocabulary."
    )
  return loaded

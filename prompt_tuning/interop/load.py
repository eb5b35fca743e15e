"""A backbone by name or path: architecture, weights, vocabulary, fingerprint."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax

from prompt_tuning.backbones.t5 import files
from prompt_tuning.data import vocabularies

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
    path: "mini", or a folder that this library saved; None for random weights.
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
  found, params = files.load(folder, backbone)
  beside = folder / files.VOCABULARY
  if vocabulary is None:
    if not beside.is_file():
      raise ValueError(
        f"{str(folder)!r} holds no {files.VOCABULARY}; bind `VOCABULARY` to "
        "@vocabularies.sentencepiece() with its path."
      )
    vocabulary = vocabularies.sentencepiece(str(beside))
  where = str(beside) if beside.is_file() else None
  return checked(Loaded(found, params, vocabulary, path, where))


def checked(loaded: Loaded) -> Loaded:
  """Refuses a vocabulary with more ids than the backbone has rows."""
  rows, ids = loaded.backbone.spec.vocabulary, loaded.vocabulary.vocab_size
  if ids > rows:
    raise ValueError(
      f"The vocabulary has {ids} ids, but the backbone {loaded.name!r} has {rows} "
      "rows: it is another backbone's vocabulary."
    )
  return loaded

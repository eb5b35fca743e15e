"""The backbone families that this library reads, and what each must tell of its files.

`interop.load` asks them in turn. A family keeps its readers here, in interop, because
they share those of tensors, checkpoints and stores; its room in `backbones/` imports
the core alone.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from prompt_tuning.core.backbone import Backbone
from prompt_tuning.core.context import Spec
from prompt_tuning.interop import bert_family, decoder_family, t5_family


class Opened(Protocol):
  """A backbone on disk, recognised; no weights are read.

  Attributes:
    path: what the user gave.
    vocabulary: "bytes", a vocabulary's file beside the weights, or None.
    arrays: name -> what `read()` gives the array of.
  """

  path: Any
  vocabulary: str | None
  arrays: Mapping[str, Any]

  @property
  def spec(self) -> Spec:
    """Of the backbone, as its files say."""


class Family(Protocol):
  """A module of functions.

  Attributes:
    NAME: as `Backbone.family` and cards say it.
    LOOKED_FOR: what its folders are, in words, for who gave something else.
    MODEL_TYPES: of Hugging Face's config.json.
    FORMAT: what config.json of a folder that this library saved says as "format".
  """

  NAME: str
  LOOKED_FOR: str
  MODEL_TYPES: tuple[str, ...]
  FORMAT: str

  def open_source(self, place: Any, expected: Backbone | None = None) -> Opened | None:
    """Recognises a backbone; None for what is none of this family.

    Args:
      place: `pathlib.Path` or `epath.Path`.
      expected: bound architecture, for what files do not say.

    Raises:
      ValueError: if it is one, and damaged.
    """

  def load(
    self, opened: Opened, expected: Backbone | None, shardings: Any, dtype: Any
  ) -> tuple[Backbone, Any]:
    """(backbone, weights), each array read once, straight into its place."""

  def narrowed(self, backbone: Backbone, params: Any) -> tuple[Any, Any]:
    """Drawn weights as they are kept, and the arrays they were if these differ."""

  def fingerprint(self, params: Any) -> str:
    """A short digest of weights."""

  def digest(self, arrays: Mapping[str, Any]) -> str:
    """The same of arrays as they are stored."""


KNOWN: list[Family] = [t5_family, decoder_family, bert_family]


def of(name: str) -> Family:
  """The family of that name.

  Raises:
    ValueError: if there is none.
  """
  for family in KNOWN:
    if name == family.NAME:
      return family
  raise ValueError(
    f"This library has no backbone family {name!r}; it has "
    f"{', '.join(family.NAME for family in KNOWN)}."
  )


def looked_for() -> str:
  """What a folder may be, in words."""
  return "; ".join(family.LOOKED_FOR for family in KNOWN)

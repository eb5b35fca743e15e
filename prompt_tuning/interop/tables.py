"""Plain tables of a foreign prompt, on their way to a product."""

import dataclasses
from typing import Any

import numpy as np

from prompt_tuning.interop.finite import is_finite
from prompt_tuning.interop.lazy import UnreadableError


@dataclasses.dataclass(frozen=True)
class Tables:
  """Attributes:
  encoder_PH: vectors in front of the encoder's input [P H].
  decoder_PH: vectors in front of the decoder's start token [P H].
  decoder_GPJ: keys and values of the decoder's layers [G P J], J = heads * head width.
  heads: N, where there are keys and values.
  """

  encoder_PH: np.ndarray | None = None
  decoder_PH: np.ndarray | None = None
  decoder_GPJ: np.ndarray | None = None
  heads: int | None = None

  @property
  def backbone(self) -> dict[str, Any]:
    """What they say of the backbone, for a product's card."""
    if self.decoder_GPJ is None:
      return {"width": self.encoder_PH.shape[1]}
    G, _, J = self.decoder_GPJ.shape
    shape = {"num_heads": self.heads, "head_dim": J // self.heads}
    return {"architecture": {**shape, "num_decoder_layers": G // 2}}


def checked(vectors: np.ndarray, where: str, name: str = "an array") -> np.ndarray:
  """Float32 vectors [P H].

  Args:
    vectors: as read. where: their file or folder. name: of their tensor there.

  Raises:
    UnreadableError: if they are no finite floating-point numbers of that rank.
  """
  if vectors.ndim != 2 or not is_float(vectors.dtype) or not vectors.size:
    raise UnreadableError(
      f"{where!r} holds {name} {vectors.dtype} {vectors.shape}; a prompt is [P H] of "
      "floating-point numbers."
    )
  vectors = np.asarray(vectors, np.float32)
  if not is_finite(vectors):
    raise UnreadableError(f"In {where!r}, {name} holds numbers that are not finite.")
  return vectors


def is_float(dtype: np.dtype) -> bool:
  """Whether numbers of a type are floating-point ones."""
  return np.issubdtype(dtype, np.floating) or dtype.name == "bfloat16"

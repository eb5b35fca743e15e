"""Vocabularies: a SentencePiece file or UTF-8 bytes.

They give the ids and texts of SeqIO's vocabularies of the same names, but importing
SeqIO imports TensorFlow, which takes longer than all else that a short run needs. So
they turn into SeqIO's own where a SeqIO task is built.
"""

import abc
import dataclasses
import functools
import pathlib
from collections.abc import Iterable
from typing import Any

# T5 keeps this many sentinel ids above the pieces.
EXTRA_IDS = 100
BYTES = 256


@dataclasses.dataclass(frozen=True)
class Vocabulary(abc.ABC):
  """What both have in common: 0 pads, 1 ends, 2 is unknown."""

  pad_id = 0
  bos_id = None
  eos_id = 1
  unk_id = 2

  @property
  @abc.abstractmethod
  def vocab_size(self) -> int:
    """Ids, sentinels included."""

  @abc.abstractmethod
  def encode(self, text: str) -> list[int]:
    """Ids of a text, without an end mark."""

  @abc.abstractmethod
  def decode(self, ids: Iterable[int]) -> str:
    """Text of ids up to the first end mark."""

  @abc.abstractmethod
  def for_seqio(self) -> Any:
    """The same as a `seqio.Vocabulary`."""


@dataclasses.dataclass(frozen=True)
class SentencePiece(Vocabulary):
  """Pieces of a SentencePiece model, and above them sentinels, the first one last.

  Attributes:
    path: of the model, local or not. extra_ids: how many sentinels.
  """

  path: str
  extra_ids: int = EXTRA_IDS

  @functools.cached_property
  def sp_model(self) -> bytes:
    """The model, sentinels included."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(_path(self.path).read_bytes())
    for number in reversed(range(self.extra_ids)):
      model.pieces.add(
        piece=f"\u2581<extra_id_{number}>",
        score=0.0,
        type=sentencepiece_model_pb2.ModelProto.SentencePiece.USER_DEFINED,
      )
    return model.SerializeToString()

  @functools.cached_property
  def _pieces(self) -> Any:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=self.sp_model)

  @property
  def eos_id(self) -> int:
    return self._pieces.eos_id()

  @property
  def unk_id(self) -> int:
    return self._pieces.unk_id()

  @property
  def vocab_size(self) -> int:
    return self._pieces.get_piece_size()

  def encode(self, text: str) -> list[int]:
    return self._pieces.encode(text)

  def decode(self, ids: Iterable[int]) -> str:
    size, unknown = self.vocab_size, self.unk_id
    known = [int(i) if i < size else unknown for i in ids]
    return self._pieces.decode(_up_to_end(known, self.eos_id))

  def for_seqio(self) -> Any:
    import seqio

    return seqio.SentencePieceVocabulary(self.path, extra_ids=self.extra_ids)

  def __str__(self) -> str:
    return f"the pieces of {self.path!r} with {self.extra_ids} extra ids"


@dataclasses.dataclass(frozen=True)
class Bytes(Vocabulary):
  """ByT5's: 3 special ids, 256 bytes, then sentinels."""

  extra_ids: int = 125

  @property
  def vocab_size(self) -> int:
    return self.unk_id + 1 + BYTES + self.extra_ids

  def encode(self, text: str) -> list[int]:
    return [byte + self.unk_id + 1 for byte in text.encode("utf-8")]

  def decode(self, ids: Iterable[int]) -> str:
    values = [int(i) - self.unk_id - 1 for i in _up_to_end(list(ids), self.eos_id)]
    return bytes(v for v in values if 0 <= v < BYTES).decode("utf-8", errors="ignore")

  def for_seqio(self) -> Any:
    import seqio

    return seqio.ByteVocabulary(extra_ids=self.extra_ids)

  def __str__(self) -> str:
    return f"bytes with {self.extra_ids} extra ids"


def _path(path: str) -> Any:
  """A local path, or one of a remote place."""
  if "://" not in path:
    return pathlib.Path(path)
  from etils import epath

  return epath.Path(path)


def _up_to_end(ids: list[int], end: int) -> list[int]:
  return ids[: ids.index(end) + 1] if end in ids else ids


@functools.cache
def sentencepiece(path: str, extra_ids: int = EXTRA_IDS) -> Vocabulary:
  """The vocabulary of a SentencePiece model file, sentinels above its pieces.

  Raises:
    ValueError: if the file does not exist.
  """
  if not _path(path).exists():
    raise ValueError(
      f"`VOCABULARY` is {path!r}, which does not exist. Give the path of the "
      "backbone's SentencePiece model (often named spiece.model)."
    )
  return SentencePiece(path, extra_ids)


@functools.cache
def byte(extra_ids: int = 125) -> Vocabulary:
  """ByT5's vocabulary: 3 special ids, 256 bytes, then sentinels."""
  return Bytes(extra_ids)


def for_seqio(vocabulary: Any) -> Any:
  """A vocabulary for SeqIO's own pipelines: ours as SeqIO's, SeqIO's as they are."""
  return vocabulary.for_seqio() if isinstance(vocabulary, Vocabulary) else vocabulary


def same(left: Any, right: Any) -> bool:
  """Whether two vocabularies, ours or SeqIO's, hold the same, wherever they lie.

  Those of SentencePiece models are compared by the models' bytes and the sentinels.
  """
  if left is right or left == right:
    return True
  left, right = for_seqio(left), for_seqio(right)
  models = [getattr(one, "sp_model", None) for one in (left, right)]
  if type(left) is not type(right) or None in models:
    return left == right
  return left.extra_ids == right.extra_ids and models[0] == models[1]


def encode(vocabulary: Vocabulary, text: str) -> list[int]:
  """Piece ids of a text, without an end mark."""
  return [int(piece) for piece in vocabulary.encode(text)]


def with_end(vocabulary: Vocabulary, text: str) -> list[int]:
  """Piece ids of a text, then the end mark."""
  return [*encode(vocabulary, text), vocabulary.eos_id]


def decode(vocabulary: Vocabulary, ids: list[int]) -> str:
  """Text of piece ids up to the first end mark; ids beyond the pieces are dropped."""
  kept = []
  for piece in ids:
    if piece == vocabulary.eos_id:
      break
    if piece > 0:
      kept.append(int(piece))
  return vocabulary.decode(kept).strip()

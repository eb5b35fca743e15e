"""Vocabularies: a SentencePiece file, UTF-8 bytes, or a file of `tokenizer_json`.

The first two give the ids and texts of SeqIO's of the same names, but importing
SeqIO imports TensorFlow, which takes longer than all else that a short run needs. So
they turn into SeqIO's own where a SeqIO task is built.
"""

import abc
import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterable
from typing import Any

from prompt_tuning.core import files

# T5 keeps this many sentinel ids above the pieces.
EXTRA_IDS = 100
# What a folder's vocabulary is called; the first that is there counts.
NAMES = ("spiece.model", "sentencepiece.model", "tokenizer.json", "vocab.txt")
BYTES = 256


@dataclasses.dataclass(frozen=True)
class Vocabulary(abc.ABC):
  """What all have in common; unless one says otherwise 0 pads, 1 ends, 2 is unknown."""

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

  def holds(self, token: str) -> bool:
    """Whether one piece, or one sentinel, is this token."""
    names = (token, f"\u2581{token}")
    ids = (self._pieces.piece_to_id(name) for name in names)
    return any(self._pieces.id_to_piece(i) in names for i in ids)

  def encode(self, text: str) -> list[int]:
    return self._pieces.encode(text)

  def decode(self, ids: Iterable[int]) -> str:
    size, unknown = self.vocab_size, self.unk_id
    known = [int(i) if i < size else unknown for i in ids]
    return self._pieces.decode(up_to_end(known, self.eos_id))

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
    values = [int(i) - self.unk_id - 1 for i in up_to_end(list(ids), self.eos_id)]
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


def up_to_end(ids: list[int], end: int) -> list[int]:
  """Ids up to the first end mark, that included."""
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


def from_file(path: str, extra_ids: int = EXTRA_IDS) -> Vocabulary:
  """The vocabulary of a file, whichever kind it is.

  Args:
    path: of a tokenizer.json, of a SentencePiece model, or of a folder with one of
      them, local or not.
    extra_ids: how many sentinels stand above the pieces of a SentencePiece model; a
      tokenizer.json holds its own.

  Raises:
    ValueError: if there is no such file, or it is a tokenizer.json that is damaged.
  """
  from prompt_tuning.data import tokenizer_files, tokenizer_json

  found = locate(path)
  if tokenizer_files.is_one(found):
    made = tokenizer_json.TokenizerJson(found)
    made.check()
    return made
  return sentencepiece(found, extra_ids)


def locate(path: Any, argument: str = "VOCABULARY") -> str:
  """The vocabulary's file, which a path names or its folder holds.

  Args:
    argument: what the caller knows the path by, for messages.

  Raises:
    ValueError: if there is none.
  """
  if not isinstance(path, (str, os.PathLike)):
    raise ValueError(f"`{argument}` must be the path of a file, got {path!r}.")
  place = files.at(os.fspath(path))
  if place.is_file():
    return str(place)
  found = [str(place / name) for name in NAMES if (place / name).is_file()]
  if found:
    return found[0]
  what = "holds no vocabulary" if place.is_dir() else "is no regular file"
  what = what if place.exists() else "does not exist"
  raise ValueError(
    f"`{argument}` is {str(path)!r}, which {what}. Give the path of the backbone's "
    "SentencePiece model (often named spiece.model) or of its tokenizer.json."
  )


def first_sentinel(vocabulary: Any) -> int:
  """The id of `<extra_id_0>`; the others count down from it.

  Args:
    vocabulary: ours or SeqIO's.

  Raises:
    ValueError: if it has no sentinels.
  """
  found = getattr(vocabulary, "first_sentinel", vocabulary.vocab_size - 1)
  if found is None:
    raise ValueError(
      f"{vocabulary} hold no sentinels <extra_id_0>, <extra_id_1>, ... whose ids count "
      "down. Bind `VOCABULARY` to a T5's."
    )
  return found


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
    if piece >= 0 and piece != vocabulary.pad_id:
      kept.append(int(piece))
  return vocabulary.decode(kept).strip()

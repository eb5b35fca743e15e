"""Vocabularies: a SentencePiece file or UTF-8 bytes, as SeqIO vocabularies."""

import functools
import os

import seqio

# T5 keeps this many sentinel ids above the pieces.
EXTRA_IDS = 100


@functools.cache
def sentencepiece(path: str, extra_ids: int = EXTRA_IDS) -> seqio.Vocabulary:
  """The vocabulary of a SentencePiece model file, sentinels above its pieces.

  Raises:
    ValueError: if the file does not exist.
  """
  if not os.path.exists(path) and "://" not in path:
    raise ValueError(
      f"`VOCABULARY` is {path!r}, which does not exist. Give the path of the "
      "backbone's SentencePiece model (often named spiece.model)."
    )
  return seqio.SentencePieceVocabulary(path, extra_ids=extra_ids)


@functools.cache
def byte(extra_ids: int = 125) -> seqio.Vocabulary:
  """ByT5's vocabulary: 3 special ids, 256 bytes, then sentinels."""
  return seqio.ByteVocabulary(extra_ids=extra_ids)


def encode(vocabulary: seqio.Vocabulary, text: str) -> list[int]:
  """Piece ids of a text, without an end mark."""
  return [int(piece) for piece in vocabulary.encode(text)]


def with_end(vocabulary: seqio.Vocabulary, text: str) -> list[int]:
  """Piece ids of a text, then the end mark."""
  return [*encode(vocabulary, text), vocabulary.eos_id]


def decode(vocabulary: seqio.Vocabulary, ids: list[int]) -> str:
  """Text of piece ids up to the first end mark; ids beyond the pieces are dropped."""
  kept = []
  for piece in ids:
    if piece == vocabulary.eos_id:
      break
    if piece > 0:
      kept.append(int(piece))
  return vocabulary.decode(kept).strip()

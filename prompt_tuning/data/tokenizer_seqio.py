"""A tokenizer.json as a vocabulary of SeqIO, its ids made outside TensorFlow's graph.

It imports SeqIO, and with it TensorFlow: import it where a SeqIO task is built.
"""

import hashlib
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from prompt_tuning.core import files
from prompt_tuning.data.tokenizer_json import TokenizerJson


class TokenizerJsonVocabulary(seqio.Vocabulary):
  """Ids and texts of a `TokenizerJson`, in Python and in `tf.data`.

  Args:
    ours: what it is made of.
  """

  def __init__(self, ours: TokenizerJson) -> None:
    super().__init__()
    self.ours = ours

  @property
  def pad_id(self) -> int:
    # SeqIO's must be a number; its readers of a task fill nothing up.
    return self.ours.pad_id or 0

  @property
  def bos_id(self) -> int | None:
    return self.ours.bos_id

  @property
  def eos_id(self) -> int:
    return self.ours.eos_id

  @property
  def unk_id(self) -> int | None:
    return self.ours.unk_id

  @property
  def first_sentinel(self) -> int | None:
    return self.ours.first_sentinel

  @property
  def _base_vocab_size(self) -> int:
    return self.ours.vocab_size

  def _encode(self, s: str) -> list[int]:
    return self.ours.encode(s)

  def _decode(self, ids: Any) -> str:
    return self.ours.decode(ids)

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
    def encode(text: Any) -> np.ndarray:
      return np.array(self.ours.encode(_words(text)), np.int32)

    found = tf.numpy_function(encode, [s], tf.int32)
    return tf.ensure_shape(found, [None])

  def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
    def decode(rows: np.ndarray) -> np.ndarray:
      flat = rows.reshape(-1, rows.shape[-1])
      # The ids behind an end mark are pads by now; no text may begin with one.
      texts = [self.ours.decode(row.tolist()).encode() for row in flat]
      return np.array(texts, object).reshape(rows.shape[:-1])

    found = tf.numpy_function(decode, [ids], tf.string)
    return tf.ensure_shape(found, ids.shape[:-1])

  def __eq__(self, other: object) -> bool:
    if not isinstance(other, TokenizerJsonVocabulary):
      return False
    return self._identity() == other._identity()

  def __hash__(self) -> int:
    return hash(self._identity())

  def __str__(self) -> str:
    return str(self.ours)

  def _identity(self) -> tuple[Any, ...]:
    digest = hashlib.sha256(files.at(self.ours.path).read_bytes()).hexdigest()
    return digest, self.pad_id, self.bos_id, self.eos_id, self.unk_id


def _words(text: Any) -> str:
  return text.decode("utf-8") if isinstance(text, bytes) else str(text)

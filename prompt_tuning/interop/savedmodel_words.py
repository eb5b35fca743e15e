"""Text to ids and back inside a graph of TensorFlow."""

import dataclasses
from collections.abc import Callable
from typing import Any

from prompt_tuning.interop import serving_export
from prompt_tuning.interop.serving_files import FIRST_BYTE

Tensor = Any  # tf.Tensor, or tf.RaggedTensor where rows differ


@dataclasses.dataclass(frozen=True)
class Tokeniser:
  """Text to ids and back in a graph.

  Attributes:
    encode: texts [B] -> ids without end marks, ragged [B n].
    decode: ids, ragged [B n] -> texts [B].
    resource: what the SavedModel must keep.
  """

  encode: Callable[[Tensor], Tensor]
  decode: Callable[[Tensor], Tensor]
  resource: Any = None


def tokeniser(vocabulary: Any) -> Tokeniser | None:
  """Of a vocabulary; None where it cannot be put into a graph here."""
  import tensorflow as tf

  said, model = serving_export.vocabulary(vocabulary)
  if said is None or said["kind"] == "tokenizers":
    return None
  if model is None:
    return Tokeniser(_encode_bytes, _decode_bytes)
  try:
    import tensorflow_text
  except ImportError:
    return None
  made = tensorflow_text.SentencepieceTokenizer(model=model, out_type=tf.int32)
  size, unknown = vocabulary.vocab_size, vocabulary.unk_id

  def decode(ids: Tensor) -> Tensor:
    known = tf.ragged.map_flat_values(lambda x: tf.where(x < size, x, unknown), ids)
    return tf.strings.strip(made.detokenize(known))

  return Tokeniser(made.tokenize, decode, made)


def _encode_bytes(texts: Tensor) -> Tensor:
  import tensorflow as tf

  def numbers(pieces: Tensor) -> Tensor:
    values = tf.io.decode_raw(pieces, tf.uint8, fixed_length=1)[:, 0]
    return tf.cast(values, tf.int32) + FIRST_BYTE

  return tf.ragged.map_flat_values(numbers, tf.strings.bytes_split(texts))


def _decode_bytes(ids: Tensor) -> Tensor:
  import tensorflow as tf

  table = tf.constant([bytes([i]) for i in range(256)])
  values = ids - FIRST_BYTE
  kept = tf.ragged.boolean_mask(values, (values >= 0) & (values < 256))
  pieces = tf.ragged.map_flat_values(lambda x: tf.gather(table, x), kept)
  texts = tf.strings.reduce_join(pieces, axis=1)
  texts = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="ignore")
  return tf.strings.strip(texts)

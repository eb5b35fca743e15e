"""Virtual positions for SeqIO pipelines that T5X runs, in TensorFlow's operations.

What `data.converter.PromptFeatureConverter` computes with NumPy is said here as a
graph, so that an iterator's state can be saved and nothing waits for Python.
"""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from prompt_tuning.core.model import RESERVED_ID
from prompt_tuning.data.converter import PromptFeatureConverter
from prompt_tuning.data.features import PAD, Layout
from prompt_tuning.data.task import MARK


class VirtualPositions(PromptFeatureConverter):
  """The feature converter of `model.PromptModel`.

  Args:
    layout: positions of inputs and targets; what is longer was cut by SeqIO.
    pack: must be False.

  Raises:
    ValueError: for packing, which SeqIO does without knowing of virtual positions.
  """

  def __init__(self, layout: Layout, pack: bool = False, **kwargs: Any) -> None:
    if pack:
      raise ValueError(
        "`utils.DatasetConfig.pack` is True, but SeqIO's packing knows no virtual "
        "positions. Set it to False (gin/t5x/train.gin does), or pack with "
        "`python -m prompt_tuning.train` and PACK_SEGMENTS."
      )
    super().__init__(layout, **kwargs)

  def _convert_features(
    self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
  ) -> tf.data.Dataset:
    del task_feature_lengths
    lengths = self.layout.lengths

    def convert(example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
      inputs = _fitting(example["inputs"], self.layout.inputs)
      targets = _fitting(example["targets"], self.layout.targets)
      at = self._position(inputs, example)
      shifted = tf.concat([[0], targets[:-1]], 0)
      side, decoder = self.layout.encoder_prompt, self.layout.decoder_prompt
      features = {
        "inputs": _insert(inputs, tf.fill([side], RESERVED_ID), at),
        "prompt_index": _index(inputs, side, at),
        "targets": tf.concat([tf.zeros([decoder], tf.int32), targets], 0),
        "decoder_inputs": _insert(shifted, tf.fill([decoder], RESERVED_ID), 0),
        "decoder_prompt_index": _index(shifted, decoder, 0),
      }
      return {
        name: _pad(name, value, lengths[name]) for name, value in features.items()
      }

    return ds.map(convert, num_parallel_calls=tf.data.AUTOTUNE)

  def _position(self, inputs: tf.Tensor, example: Mapping[str, Any]) -> Any:
    size = tf.size(inputs)
    if self.layout.place == "after_first":
      return tf.minimum(1, size)
    last = tf.maximum(size - 1, 0)
    if self.layout.place == "end":
      return last
    if self.layout.place == "mark":
      mark = tf.cast(example.get("mark", -1), tf.int32)
      told = f"PROMPT_PLACE is 'mark', but an input has no {MARK}."
      with tf.control_dependencies([tf.debugging.assert_non_negative(mark, told)]):
        return tf.minimum(mark, last)
    return 0


def _fitting(ids: tf.Tensor, length: int) -> tf.Tensor:
  """The ids of an example without padding, the end mark kept where they are cut."""
  ids = tf.boolean_mask(ids, ids > 0)
  kept = tf.concat([ids[: length - 1], ids[-1:]], 0)
  return tf.cond(tf.size(ids) > length, lambda: kept, lambda: ids)


def _insert(ids: tf.Tensor, reserved: tf.Tensor, at: Any) -> tf.Tensor:
  return tf.concat([ids[:at], reserved, ids[at:]], 0)


def _index(ids: tf.Tensor, length: int, at: Any) -> tf.Tensor:
  return _insert(tf.fill(tf.shape(ids), -1), tf.range(length), at)


def _pad(name: str, ids: tf.Tensor, length: int) -> tf.Tensor:
  fill = PAD.get(name, 0)
  filled = tf.pad(ids, [[0, length - tf.size(ids)]], constant_values=fill)
  return tf.ensure_shape(filled, [length])

"""Virtual positions for SeqIO pipelines that T5X runs, in TensorFlow's operations.

What `data.converter.PromptFeatureConverter` computes with NumPy is a graph here, so
that an iterator's state can be saved and nothing waits for Python.
"""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tensorflow.experimental.numpy as tnp

from prompt_tuning.data.converter import PromptFeatureConverter
from prompt_tuning.data.features import Layout
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
    layout = self.layout
    prompts = {"encoder": layout.encoder_prompt, "decoder": layout.decoder_prompt}

    def convert(example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
      inputs_1T = self._fitting(example["inputs"], layout.inputs)
      targets_1U = self._fitting(example["targets"], layout.targets)
      mark = tf.cast(example.get("mark", -1), tf.int32)
      told = f"PROMPT_PLACE is 'mark', but an input has no {MARK}."
      checks = []
      if layout.place == "mark":
        checks.append(tf.debugging.assert_non_negative(mark, told))
      with tf.control_dependencies(checks):
        mark_1 = tf.identity(mark)[None]
      at_1 = layout.form.starts(inputs_1T, layout.place, mark_1, tnp)
      rows = layout.form.convert(inputs_1T, targets_1U, prompts, at_1, tnp)
      # Nothing follows the last target.
      kept = layout.form.ids.is_real(rows["targets"])
      kept |= rows["decoder_prompt_index"] >= 0
      blank = tnp.full_like(rows["decoder_inputs"], layout.form.ids.pad)
      rows["decoder_inputs"] = tf.where(kept, rows["decoder_inputs"], blank)
      return {
        name: tf.ensure_shape(row[0], [layout.lengths[name]])
        for name, row in rows.items()
      }

    return ds.map(convert, num_parallel_calls=tf.data.AUTOTUNE)

  def _fitting(self, ids: tf.Tensor, length: int) -> tf.Tensor:
    """Ids of an example, padded, the end mark kept where they are cut [1 length]."""
    marks = self.layout.form.ids
    ids = tf.boolean_mask(ids, marks.is_real(ids))
    kept = tf.concat([ids[: length - 1], ids[-1:]], 0)
    ids = tf.cond(tf.size(ids) > length, lambda: kept, lambda: ids)
    room = [[0, length - tf.size(ids)]]
    ids = tf.pad(ids, room, constant_values=marks.pad)
    return tf.ensure_shape(ids, [length])[None]

"""`Layout` as a SeqIO feature converter; importing it imports TensorFlow."""

from collections.abc import Mapping
from typing import Any

import seqio
import tensorflow as tf

from prompt_tuning.core.format import FORM, EncoderDecoder
from prompt_tuning.data.features import Layout, pad


def _specs(form: EncoderDecoder) -> dict[str, Any]:
  """What SeqIO wants to know of each model feature."""
  return {
    name: seqio.FeatureConverter.FeatureSpec(dtype=getattr(tf, feature.dtype))
    for name, feature in form.features.items()
  }


class PromptFeatureConverter(seqio.FeatureConverter):
  """`Layout` as a SeqIO feature converter, for SeqIO's own pipelines.

  Packing is done by `data.packing`; this converter pads. A feature `mark` beside
  `inputs` and `targets`, as our tasks give it, places the prompt of the place "mark".
  """

  TASK_FEATURES = {
    "inputs": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
    "targets": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
  }
  MODEL_FEATURES = _specs(FORM)
  PACKING_FEATURE_DTYPES: dict[str, Any] = {}

  def __init__(self, layout: Layout, **kwargs: Any) -> None:
    self.MODEL_FEATURES = _specs(layout.form)
    super().__init__(pack=False, **kwargs)
    self.layout = layout

  def _convert_features(
    self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
  ) -> tf.data.Dataset:
    names = tuple(self.MODEL_FEATURES)
    lengths = self.get_model_feature_lengths(task_feature_lengths)
    form = self.layout.form

    def rows(inputs, targets, mark):
      inputs, targets = (x[form.ids.is_real(x)] for x in (inputs, targets))
      features = self.layout.convert(
        {"inputs": inputs, "targets": targets, "mark": mark}
      )
      padded = pad(features, self.layout.lengths, form)
      return [padded[name] for name in names]

    def convert(example):
      mark = tf.cast(example.get("mark", -1), tf.int32)
      values = tf.numpy_function(
        rows, [example["inputs"], example["targets"], mark], [tf.int32] * len(names)
      )
      for name, value in zip(names, values, strict=True):
        value.set_shape([lengths[name]])
      return dict(zip(names, values, strict=True))

    return ds.map(convert, num_parallel_calls=tf.data.AUTOTUNE)

  def get_model_feature_lengths(
    self, task_feature_lengths: Mapping[str, int]
  ) -> Mapping[str, int]:
    return self.layout.lengths

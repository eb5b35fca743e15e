"""Fixtures of the files beside this one."""

import sys
import types

import pytest
from mixture_tools import VOCABULARY


@pytest.fixture(scope="module")
def vocabulary():
  seqio = pytest.importorskip("seqio")
  return seqio.SentencePieceVocabulary(VOCABULARY, extra_ids=100)


# --- the registry


@pytest.fixture
def module(vocabulary, monkeypatch):
  """A module whose import has registered a task and a mixture."""
  import seqio
  import tensorflow as tf

  def source(split, shuffle_files, seed=None):
    rows = {"inputs": ["a b", "c d", "e f"], "targets": ["Good", "Bad", "Good"]}
    return tf.data.Dataset.from_tensor_slices({**rows, "note": ["x", "y", "z"]})

  def postprocess(text, example=None, is_target=False):
    return (text.lower(), example["note"].decode())

  def half_right(targets, predictions):
    right = [t == p for t, p in zip(targets, predictions, strict=True)]
    return {"own": 100 * sum(right) / len(right)}

  feature = seqio.Feature(vocabulary, add_eos=True)
  seqio.TaskRegistry.add(
    "registered_pairs",
    source=seqio.FunctionDataSource(source, splits=("train", "validation")),
    preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
    output_features={"inputs": feature, "targets": feature},
    postprocess_fn=postprocess,
    metric_fns=[half_right],
  )
  seqio.MixtureRegistry.add("registered_mixture", [("registered_pairs", 1.0)])
  monkeypatch.setitem(sys.modules, "some_tasks", types.ModuleType("some_tasks"))
  yield "some_tasks"
  seqio.TaskRegistry.remove("registered_pairs")
  seqio.MixtureRegistry.remove("registered_mixture")

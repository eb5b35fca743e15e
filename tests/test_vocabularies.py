"""Our vocabularies give SeqIO's ids and texts, without TensorFlow."""

import subprocess
import sys

import numpy as np
import pytest
import seqio

from prompt_tuning.data import vocabularies

TEXTS = [
  "",
  " a  lovely evening ",
  "naïve café — 漢字 ☕",
  "Fill <extra_id_0> and <extra_id_99> in.",
  "tabs\tand\nlines",
]


@pytest.mark.parametrize("kind", ["sentencepiece", "byte"])
def test_ids_and_texts_are_those_of_seqio(kind, vocabulary_file):
  if kind == "sentencepiece":
    ours = vocabularies.sentencepiece(vocabulary_file)
    theirs = seqio.SentencePieceVocabulary(vocabulary_file, extra_ids=100)
  else:
    ours, theirs = vocabularies.byte(), seqio.ByteVocabulary(125)
  assert vocabularies.for_seqio(ours) == theirs
  assert vocabularies.for_seqio(theirs) is theirs
  for name in ("vocab_size", "pad_id", "eos_id", "unk_id", "extra_ids"):
    assert getattr(ours, name) == getattr(theirs, name), name
  for text in TEXTS:
    assert ours.encode(text) == theirs.encode(text), text
  random = np.random.default_rng(0)
  for _ in range(50):
    ids = random.integers(2, ours.vocab_size + 20, 12).tolist()
    assert ours.decode(ids) == theirs.decode(ids)
    assert ours.decode([*ids, 1, 5]) == theirs.decode([*ids, 1, 5])


def test_sentinels_are_numbered_from_the_top(vocabulary_file):
  ours = vocabularies.sentencepiece(vocabulary_file)
  assert ours.encode("<extra_id_0>")[-1] == ours.vocab_size - 1
  assert vocabularies.sentencepiece(vocabulary_file, 0).vocab_size == (
    ours.vocab_size - 100
  )


def test_a_missing_file_is_named():
  with pytest.raises(ValueError, match="`VOCABULARY` is '/none', which does not"):
    vocabularies.sentencepiece("/none")


def test_a_run_on_lists_or_files_imports_no_tensorflow(tmp_path):
  (tmp_path / "x.tsv").write_text("text\tlabel\ngood\tyes\nbad\tno\n")
  program = f"""
import sys
import prompt_tuning as pt
from prompt_tuning import eval, export, infer, train
from prompt_tuning.data import files, lists
from prompt_tuning.engine import examples
model = pt.load_model("mini")
vocabulary = model.loaded.vocabulary
tsv = files.Files(
  name="x", directory={str(tmp_path)!r}, train="x.tsv", validation="x.tsv",
  inputs="{{text}}", targets="{{label}}",
)
for task in (tsv, lists.Lists(train=[("a", "b")], validation=[("a", "b")])):
  assert examples.validation_part(task, vocabulary, None).examples
assert not {{"tensorflow", "seqio", "tensorflow_datasets"}} & set(sys.modules)
"""
  subprocess.run([sys.executable, "-c", program], check=True, timeout=300)


def test_tuning_on_pairs_and_on_a_file_imports_no_tensorflow(tmp_path):
  (tmp_path / "x.tsv").write_text("text\tlabel\ngood\tyes\nbad\tno\n")
  program = f"""
import sys
import prompt_tuning as pt
pairs = [("good", "yes"), ("bad", "no")]
model = pt.load_model("mini")
pt.tune(model, pairs, validation=pairs, steps=1, batch_size=2, prompt_length=1)
from prompt_tuning.engine import config
from prompt_tuning import train
sys.argv = ["train", *[f"--gin_file=gin/{{name}}.gin" for name in (
  "train", "backbones/mini", "tasks/files", "outputs/choice", "methods/prompt_tuning"
)], *[f"--gin.{{binding}}" for binding in (
  "TRAIN_STEPS = 1", "BATCH_SIZE = 2", "PROMPT_LENGTH = 1", "TENSORBOARD = False",
  "TASK_NAME = 'x'", "DATA_DIR = {str(tmp_path)!r}", "TRAIN_FILE = 'x.tsv'",
  "VALIDATION_FILE = 'x.tsv'", "INPUTS = '{{text}}'", "TARGETS = '{{label}}'",
  "LABELS = ('yes', 'no')", "METRICS = ('accuracy',)", "LEARNING_RATE = 0.1",
  "MODEL_DIR = {str(tmp_path / "run")!r}",
)]]
config.run_verb(train.train)
assert not {{"tensorflow", "seqio", "tensorflow_datasets"}} & set(sys.modules)
"""
  subprocess.run([sys.executable, "-c", program], check=True, timeout=300)
  assert (tmp_path / "run/prompt/prompt.safetensors").exists()

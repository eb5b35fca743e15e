"""Files of `tokenizers` changed at random: one ValueError, or a vocabulary that works.

PROMPT_TUNING_THOROUGH=1 python -m pytest tests/fuzz/test_tokenizers.py -s

runs thousands of changes; the default is small. PROMPT_TUNING_FUZZ_SEED draws others.
"""

import os

import fuzz_tools
import pytest

pytest.importorskip("tokenizers")

import tokenizer_tools  # noqa: E402

from prompt_tuning.data import vocabularies  # noqa: E402

COUNT = 3000 if os.environ.get("PROMPT_TUNING_THOROUGH") else 60
SEED = int(os.environ.get("PROMPT_TUNING_FUZZ_SEED", "0"))


def t5(folder, vocabulary_file):
  return tokenizer_tools.t5(folder, vocabulary_file, count=60, added=["<new>"])


KINDS = {
  "t5": t5,
  "byte_level": lambda folder, _: tokenizer_tools.byte_level(folder),
  "word_piece": lambda folder, _: tokenizer_tools.word_piece(folder),
}


def read(folder):
  vocabulary = vocabularies.from_file(str(folder / "tokenizer.json"))
  for text in tokenizer_tools.SENTENCES:
    ids = vocabulary.encode(f"{text} <new><extra_id_0></s>")
    assert all(0 <= i < vocabulary.vocab_size for i in ids)
    assert isinstance(vocabulary.decode(ids), str)
  assert isinstance(vocabulary.decode([0, 1, 2, 3, -1, 10**12]), str)


@pytest.mark.parametrize("kind", KINDS)
def test_changed_files(kind, tmp_path, vocabulary_file):
  folder = KINDS[kind](tmp_path / kind, vocabulary_file)
  refused, accepted = fuzz_tools.fuzz(folder, read, COUNT, SEED)
  print(f"{kind}: {refused} refused, {accepted} accepted")
  assert refused and accepted

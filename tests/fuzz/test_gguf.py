"""GGUF files changed at random: one ValueError, or weights and a vocabulary that work.

PROMPT_TUNING_THOROUGH=1 python -m pytest tests/fuzz/test_gguf.py -s

runs thousands of changes; the default is small. PROMPT_TUNING_FUZZ_SEED draws others.
"""

import os

import fuzz_tools
import pytest

pytest.importorskip("gguf")

import gguf_tools  # noqa: E402

from prompt_tuning.data import vocabularies  # noqa: E402
from prompt_tuning.interop import decoder_family  # noqa: E402

COUNT = 3000 if os.environ.get("PROMPT_TUNING_THOROUGH") else 60
SEED = int(os.environ.get("PROMPT_TUNING_FUZZ_SEED", "0"))
NAME = "tiny.gguf"


def read(folder):
  path = folder / NAME
  opened = decoder_family.open_source(path)
  if opened is None:
    raise ValueError("no GGUF file")
  for lazy in opened.arrays.values():
    lazy.read()
  if opened.vocabulary is not None:
    vocabulary = vocabularies.from_file(opened.vocabulary)
    assert isinstance(vocabulary.decode(vocabulary.encode("the 12 inns")), str)


@pytest.mark.parametrize("types", [None, "Q4_1"])
def test_changed_files(types, tmp_path):
  gguf_tools.write(tmp_path / NAME, types=types)
  refused, accepted = fuzz_tools.fuzz(tmp_path, read, COUNT, SEED)
  print(f"{types}: {refused} refused, {accepted} accepted")
  assert refused and accepted

"""GGUF files changed at random: one ValueError, or weights and a vocabulary that work.

PROMPT_TUNING_THOROUGH=1 python -m pytest tests/fuzz/test_gguf_changes.py -s

runs thousands of changes; the default is small. PROMPT_TUNING_FUZZ_SEED draws others.
"""

import os
import random
import signal

import fuzz_tools
import pytest

pytest.importorskip("gguf")

import gguf_tools  # noqa: E402

from prompt_tuning.data import gguf_header, vocabularies  # noqa: E402
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


@pytest.mark.parametrize("types", [None, "Q4_1"])
def test_numbers_of_heads_claim_anything(types, tmp_path):
  """Every number before the weights, most of them counts, becomes another one."""
  path = tmp_path / NAME
  gguf_tools.write(path, types=types)
  whole = path.read_bytes()
  head = min(t.start for t in gguf_header.read(path).tensors.values())
  rng, refused = random.Random(f"{types} {SEED}"), 0
  with fuzz_tools.limited():
    for number in range(COUNT):
      size, at = rng.choice([1, 4, 8]), rng.randrange(head)
      value = rng.choice([0, 1, 255, 2**31 - 1, 2**32 - 1, 2**63, rng.getrandbits(64)])
      piece = (value % 256**size).to_bytes(size, "little")
      path.write_bytes(whole[:at] + piece + whole[at + size :])
      signal.alarm(fuzz_tools.SECONDS)
      try:
        read(tmp_path)
      except ValueError as error:
        assert str(error)
        refused += 1
      except BaseException as error:
        raise AssertionError(f"{piece!r} at {at}, case {number} of {SEED}") from error
      finally:
        signal.alarm(0)
  print(f"heads, {types}: {refused} of {COUNT} refused")
  assert 0 < refused < COUNT

"""Conditions against their formulas in numpy."""

import method_tools as tools
import numpy as np
import pytest
from word_tools import CONTEXT, IDS, LENGTHS, SPEC, VALUES, C, R, V, close, run

from prompt_tuning.conditions.external import External
from prompt_tuning.conditions.pooled import Embeddings, Encoding
from prompt_tuning.conditions.token_lookup import TokenLookup
from prompt_tuning.inits import uniform


@pytest.mark.parametrize("word, reads", [(Embeddings, 1), (Encoding, -1)])
@pytest.mark.parametrize("pool", ["mean", "first", "last", "attention"])
def test_pools(word, reads, pool):
  values = VALUES[:, ::reads]
  code, params = run(word(pool, normalize=False), CONTEXT, SPEC)
  wanted = []
  for row, length in zip(values, LENGTHS, strict=True):
    real = row[:length]
    weights = np.full(length, 1 / length)
    if pool in ("first", "last"):
      weights = np.eye(length)[0 if pool == "first" else -1]
    if pool == "attention":
      weights = np.exp(real @ params["query"])
      weights /= weights.sum()
    wanted.append(weights @ real)
  close(code.values[:, 0], wanted)
  assert code.mask.shape == (R, 1) and code.mask.all()
  assert ("encoding" in word.needs) == (word is Encoding)


def test_pooled_codes_have_unit_scale_and_an_empty_text_is_zero():
  empty = CONTEXT.replace(mask=CONTEXT.mask.at[1].set(False))
  code, _ = run(Embeddings(), empty, SPEC)
  scale = np.sqrt(np.mean(np.square(code.values[:, 0]), -1))
  tools.assert_close(scale, [1, 0, 1])


def test_external_vectors_pass_unchanged():
  code, params = run(External(C), CONTEXT, SPEC)
  np.testing.assert_array_equal(code.values[:, 0], VALUES[:, 0])
  assert not params
  with pytest.raises(ValueError, match="width` is 5, but .* width 8"):
    run(External(5), CONTEXT, SPEC)


@pytest.mark.parametrize("length, width", [(4, 0), (9, 3)])
def test_token_lookup_reads_the_first_tokens(length, width):
  word = TokenLookup(length, uniform.zeros(), width)
  code, params = run(word, CONTEXT, SPEC)
  assert params["table"].shape == (V, width or C)
  assert code.values.shape == (R, length, width or C)
  for row, mask, ids, real in zip(code.values, code.mask, IDS, LENGTHS, strict=True):
    assert mask.sum() == min(real, length)
    np.testing.assert_array_equal(row[mask], params["table"][ids[:real][:length]])

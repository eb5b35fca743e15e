"""Low-rank tables: which dense tables they equal, before a text or on top of it."""

import dataclasses

import jax
import jax.numpy as jnp
import method_tools as tools
import numpy as np
import pytest

from prompt_tuning.core import trainable as branches
from prompt_tuning.core.context import Spec
from prompt_tuning.engine import step
from prompt_tuning.objectives.cross_entropy import CrossEntropy
from prompt_tuning.parameterisers.low_rank import LowRank

P, R, S = (tools.NUMBERS[x] for x in ("PROMPT_LENGTH", "RANK", "OFFSET_LENGTH"))


@pytest.fixture(scope="module")
def dept():
  return tools.case("dept")


def factors(table_PH, rank):
  """Left [P R] and right [R H] whose product is the nearest table of that rank."""
  left, values, right = np.linalg.svd(table_PH, full_matrices=False)
  return left[:, :rank] * values[:rank], right[:rank]


def test_full_rank_is_any_dense_table():
  dense = tools.case("prompt_tuning")
  table = tools.leaf(dense, "parameterise/prompt")[0]
  assert np.linalg.matrix_rank(table) == P
  thin = tools.case("dpt_decomposed", RANK=P)
  left, right = factors(table, P)
  same = tools.changed(thin, parameterise__left=left, parameterise__right=right)
  tools.assert_close(same.logits(), dense.plain_logits)


def test_the_rank_is_that_of_the_table():
  thin = tools.case("dpt_decomposed", RANK=2)
  table = thin.vectors(thin.batch())[0]
  assert np.linalg.matrix_rank(table, tol=1e-5) == 2
  # The factors hang together: (left A, A^-1 right) is the same prompt.
  turn = np.random.default_rng(0).normal(size=(2, 2))
  turned = tools.changed(
    thin,
    parameterise__left=tools.leaf(thin, "parameterise/left") @ turn,
    parameterise__right=np.linalg.inv(turn) @ tools.leaf(thin, "parameterise/right"),
  )
  tools.assert_close(turned.vectors(turned.batch())[0], table)


def test_each_table_has_factors_of_its_own():
  word, spec = LowRank(3, None), Spec(8, 20)
  draw = np.random.default_rng(0)
  left, right = draw.normal(size=(4, 5, 3)), draw.normal(size=(4, 3, 8))
  params = {"left": jnp.float32(left), "right": jnp.float32(right)}
  found = word.apply({"params": params}, None, (4, 5, 8), spec).prompt
  for G in range(4):
    np.testing.assert_allclose(found[0, G], left[G] @ right[G], rtol=0, atol=1e-5)


@pytest.mark.parametrize("rank", [0, -1, 6, 1.0, True])
def test_a_rank_that_no_table_has(rank):
  with pytest.raises(ValueError, match=r"`LowRank.rank` \(RANK\).* min\(5, 8\), got"):
    LowRank(rank, None).init(jax.random.key(0), None, (1, 5, 8), Spec(8, 20))


@pytest.mark.parametrize("factor", ["left", "right"])
def test_without_an_offset_dept_is_a_short_prompt(dept, factor):
  off = tools.changed(dept, **{f"offset__parameterise__{factor}": 0})
  table = tools.leaf(dept, "short/parameterise/prompt")
  short = tools.changed(tools.case("prompt_tuning"), parameterise__prompt=table)
  tools.assert_close(off.logits(), short.logits())
  assert np.abs(dept.plain_logits - short.logits()).max() > 0.1


def test_dept_starts_as_its_short_prompt_and_learns_the_right_factor_first(dept):
  drawn = dept.model.init_prompt(
    jax.random.key(0), dept.params["backbone"], tools.encode
  )
  factor = drawn["offset"]["parameterise"]
  assert np.abs(factor["left"]).max() <= R**-0.5 and factor["left"].std() > 0.1
  assert not np.asarray(factor["right"]).any()
  start = dataclasses.replace(dept, params={**dept.params, "prompt": drawn})
  found, _ = step.gradients(start.model, CrossEntropy(), 1)(
    *start.split, start.batch(), None
  )
  gradient = found["prompt"]["offset"]["parameterise"]
  assert not np.asarray(gradient["left"]).any()
  assert np.asarray(gradient["right"]).any()


def test_an_offset_is_added_to_the_text_from_its_first_token_on(dept):
  """As though the tokens were others, of a table [V H] where row and place agree."""
  left, right = (
    tools.leaf(dept, f"offset/parameterise/{name}")[0] for name in ("left", "right")
  )
  table_SH = dept.model.prompt.prompts[1].at.factor * left @ right
  found = dept.model.inject(dept.params, dept.batch())
  tools.assert_close(found.get("encoder.offset").vectors[0], table_SH, 1e-6)
  # One text of tokens that no other text has, so that each can move by its own row.
  ids = np.arange(3, 3 + 8, dtype=np.int32)
  row = {"inputs": ids, "targets": np.array([30, 31, 1], np.int32)}
  rows = [row] * tools.B
  moved = branches.flatten(dept.params)
  tokens = np.array(moved["backbone/token_embedder/embedding"])
  tokens[ids] += table_SH[: len(ids)]
  moved["backbone/token_embedder/embedding"] = jnp.asarray(tokens)
  plain = tools.changed(dept, offset__parameterise__left=0)
  other = dict(branches.flatten(plain.params))
  other["backbone/token_embedder/embedding"] = jnp.asarray(tokens)
  other = dataclasses.replace(plain, params=branches.unflatten(other))
  batch = dept.batch(rows)
  tools.assert_close(other.logits(batch), dept.logits(batch))


def test_the_offset_has_a_rate_of_its_own(dept):
  faster = tools.case("dept", OFFSET_LEARNING_RATE=0.25)
  for case, rate in ((dept, 0.001), (faster, 0.25)):
    assert set(case.method.branch_rates) == {"prompt/offset"}
    assert case.method.branch_rates["prompt/offset"](0) == rate
    assert case.method.rate == 0.3

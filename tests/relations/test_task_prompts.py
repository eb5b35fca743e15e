"""Prompts of tasks: each row has its own, and what is absent learns nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import method_tools as tools
import numpy as np
import pytest

from prompt_tuning.conditions.task_id import TaskId
from prompt_tuning.core import trainable as branches
from prompt_tuning.core.context import Code, Spec
from prompt_tuning.engine import step
from prompt_tuning.objectives.cross_entropy import CrossEntropy
from prompt_tuning.parameterisers.shared_rank import SharedRank
from prompt_tuning.parameterisers.task_tables import Gather

FORMS = ["task_prompts", *(f"task_prompts_{x}" for x in ("add", "concat", "project"))]
FORMS += ["mpt"]
TASKS, P, H = tools.NUMBERS["TASKS"], tools.NUMBERS["PROMPT_LENGTH"], tools.H


@pytest.fixture(scope="module", params=FORMS)
def case(request):
  return tools.case(request.param)


def of_task(case, task):
  """The vectors that a row of a task gets [P H]."""
  rows = [{**row, "task": np.int32(task)} for row in case.rows]
  return case.vectors(case.batch(rows))[0]


def test_a_mixed_batch_is_its_tasks_one_by_one(case):
  found = case.vectors(case.batch())
  for b, row in enumerate(case.rows):
    np.testing.assert_array_equal(found[b], of_task(case, row["task"]))
    alone = case.logits(case.batch([row]))
    tools.assert_close(alone[0], case.plain_logits[b], 3e-5)


def test_the_text_makes_no_difference_and_the_task_does(case):
  others = tools.examples(seed=7)
  np.testing.assert_array_equal(
    case.vectors(case.batch(others)), case.vectors(case.batch())
  )
  assert np.abs(of_task(case, 0) - of_task(case, 1)).max() > 0.01


def test_a_task_that_is_absent_has_a_gradient_of_exactly_zero(case):
  there = sorted({int(row["task"]) for row in case.rows})
  absent = sorted(set(range(TASKS)) - set(there))
  found, _ = step.gradients(case.model, CrossEntropy(), 1)(
    *case.split, case.batch(), None
  )
  own = 0
  for path, gradient in branches.flatten(found).items():
    if gradient.shape[0] == TASKS:
      own += 1
      assert not np.asarray(gradient)[absent].any(), path
      axes = tuple(range(1, gradient.ndim))
      assert np.asarray(gradient)[there].any(axes).all(), path
    else:
      assert np.asarray(gradient).any(), path
  assert own >= 1


def test_gather_is_a_loop_over_tables():
  case = tools.case("task_prompts")
  table_KPH = tools.leaf(case, "parameterise/table")[:, 0]
  wanted = [table_KPH[row["task"]] for row in case.rows]
  np.testing.assert_array_equal(case.vectors(case.batch()), np.stack(wanted))


def test_add_and_concat_are_the_shared_table_and_the_tasks():
  added = tools.case("task_prompts_add")
  shared = tools.leaf(added, "transforms_0/table")[0]
  table = tools.leaf(added, "parameterise/table")[3, 0]
  tools.assert_close(of_task(added, 3), shared + table, 1e-6)
  behind = tools.case("task_prompts_concat")
  shared = tools.leaf(behind, "shared/parameterise/prompt")[0]
  table = tools.leaf(behind, "task/parameterise/table")[3, 0]
  np.testing.assert_array_equal(of_task(behind, 3), np.concatenate([shared, table]))


def test_project_is_a_map_of_the_shared_table():
  case = tools.case("task_prompts_project", SHARED_WIDTH=7)
  shared, maps, bias = (
    tools.leaf(case, f"parameterise/{name}") for name in ("shared", "map", "bias")
  )
  assert shared.shape == (1, P, 7)
  wanted = shared[0] @ maps[4, 0] + bias[4, 0]
  tools.assert_close(of_task(case, 4), wanted, 1e-6)


# --- shared_rank


def test_factors_of_one_are_prompt_tuning():
  dense = tools.case("prompt_tuning")
  table = tools.leaf(dense, "parameterise/prompt")
  one = tools.case("mpt", TASKS=1, RANK=1)
  rows = [{**row, "task": np.int32(0)} for row in one.rows]
  ones = {"parameterise__left": 1.0, "parameterise__right": 1.0}
  same = tools.changed(one, parameterise__shared=table, **ones)
  tools.assert_close(same.logits(same.batch(rows)), dense.plain_logits)
  # And with factors that do not train, it learns what prompt tuning learns.
  found, _ = step.gradients(same.model, CrossEntropy(), 1)(
    *same.split, same.batch(rows), None
  )
  wanted, _ = step.gradients(dense.model, CrossEntropy(), 1)(
    *dense.split, dense.batch(), None
  )
  tools.assert_close(
    found["prompt"]["parameterise"]["shared"],
    wanted["prompt"]["parameterise"]["prompt"],
  )


def test_the_matrix_of_a_task_has_its_rank_and_its_factors_a_free_scale():
  case = tools.case("mpt", RANK=2)
  shared = tools.leaf(case, "parameterise/shared")[0]
  matrix = of_task(case, 1) / shared
  assert np.linalg.matrix_rank(matrix, tol=1e-4) == 2
  scaled = tools.changed(
    case,
    parameterise__left=3 * tools.leaf(case, "parameterise/left"),
    parameterise__right=tools.leaf(case, "parameterise/right") / 3,
  )
  tools.assert_close(of_task(scaled, 1), of_task(case, 1), 1e-6)


@pytest.mark.parametrize("rank", [1, 3])
def test_every_task_starts_from_the_shared_table(rank):
  case = tools.case("mpt", RANK=rank)
  drawn = case.model.init_prompt(jax.random.key(0), case.params["backbone"])
  start = dataclasses.replace(case, params={**case.params, "prompt": drawn})
  shared = np.asarray(drawn["parameterise"]["shared"][0])
  for task in range(3):
    np.testing.assert_array_equal(of_task(start, task), shared)
  # No two ranks start alike, or they would stay so.
  left = np.asarray(drawn["parameterise"]["left"])[0, 0]
  assert len({tuple(column) for column in left.T}) == rank


def test_the_published_draw_is_nearly_silent():
  line = "shared_rank.SharedRank.factor_initializer = @uniform.normal()"
  imports = "from prompt_tuning.inits import uniform"
  case = tools.case("mpt", bindings=[f"{imports}\n{line}"])
  drawn = case.model.init_prompt(jax.random.key(0), case.params["backbone"])
  found = drawn["parameterise"]
  assert 0.01 < np.std(found["left"]) < 0.03 and 0.01 < np.std(found["right"]) < 0.03


def test_the_factors_have_a_rate_of_their_own():
  rates = tools.case("mpt").method.branch_rates
  assert {name: rate(0) for name, rate in rates.items()} == {
    "prompt/parameterise/left": 0.4,
    "prompt/parameterise/right": 0.4,
  }


# --- what does not fit


@pytest.mark.parametrize("number", [-1, TASKS])
def test_an_unknown_task_is_refused_outside_of_a_program_and_is_nothing_inside(number):
  case = tools.case("task_prompts")
  rows = [{**case.rows[0], "task": np.int32(number)}, case.rows[1]]
  batch = case.batch(rows)
  with pytest.raises(ValueError, match=f"`task` is {number}.* the tasks 0 to 14"):
    case.model.inject(case.params, batch)
  found = jax.jit(case.model.inject)(case.params, batch).get("encoder.input")
  assert not np.asarray(found.vectors[0]).any()
  assert np.asarray(found.vectors[1]).any()


def test_a_batch_without_tasks_is_refused():
  case = tools.case("task_prompts")
  rows = [{k: x for k, x in row.items() if k != "task"} for row in case.rows]
  with pytest.raises(ValueError, match="no feature `task`. Train on a mixture"):
    case.logits(case.batch(rows))


@pytest.mark.parametrize("tasks", [0, -1, 2.0, True])
def test_tasks_are_counted_in_whole_numbers(tasks):
  with pytest.raises(ValueError, match=r"`TaskId.tasks` \(TASKS\).*from 1, got"):
    TaskId(tasks)


def test_a_code_of_several_vectors_chooses_no_table():
  code = Code(jnp.ones((2, 3, 4)), jnp.ones((2, 3), bool))
  with pytest.raises(ValueError, match="one vector an example.* gives 3"):
    Gather(None).init(jax.random.key(0), code, (1, 5, 8), Spec(8, 20))


def test_a_rank_that_no_table_has():
  code = Code(jnp.ones((2, 1, 4)), jnp.ones((2, 1), bool))
  with pytest.raises(ValueError, match=r"`SharedRank.rank` \(RANK\).*min\(5, 8\)"):
    SharedRank(None, 6).init(jax.random.key(0), code, (1, 5, 8), Spec(8, 20))


def test_packed_rows_have_shapes_of_their_own_kind():
  """Shapes of parameters are learnt from a row of S examples, vectors and tasks too."""
  for name in ("task_prompts", "s_idpg_phm_external"):
    case = tools.case(name)
    packed = dataclasses.replace(case.model, segments=tools.S)
    context = packed._first_context(case.params["backbone"])
    given = [x for x in (context.task, context.external) if x is not None]
    assert [len(x) for x in given] == [len(context.ids)] == [tools.S]
    shapes = packed.prompt_shapes(case.params["backbone"])
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(
      jnp.shape, case.params["prompt"]
    )

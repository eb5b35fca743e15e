"""Two levels, on toys that can be computed by hand and on the tiny backbone."""

import dataclasses

import jax
import jax.numpy as jnp
import method_tools as tools
import numpy as np
import pytest

from prompt_tuning.core.forward import Forward
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.engine import step
from prompt_tuning.objectives import objective as objectives
from prompt_tuning.objectives.cross_entropy import CrossEntropy
from prompt_tuning.objectives.objective import Objective, Term, Weighted
from prompt_tuning.objectives.two_level import TwoLevel

# Two episodes: rows 0..3 and 4..7, each of two rows of support and two of query.
ROWS = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)
START = jnp.array([0.3, -1.0, 0.5])


@dataclasses.dataclass(frozen=True)
class Toy(Objective):
  """Mean over rows of sum_h power(a_h p_h + a_h); linear or quadratic in p."""

  power: int = 2

  def count(self, batch, ids):
    return jnp.float32(len(batch["inputs"]))

  def __call__(self, forward):
    p, a = forward.params["prompt"]["x"], forward.batch["inputs"]
    total = ((a * p[None] + a) ** self.power).sum()
    return Term(total, self.count(forward.batch, None), {})


def outer(wish, p=START, rows=ROWS, **features):
  """The outer loss at a prompt."""
  batch = {"inputs": rows, **features}
  forward = Forward(PromptedModel(None), {"prompt": {"x": p}}, batch)
  (term,) = objectives.terms(wish, forward)
  return term.total / term.weight


def by_hand(p, rate=0.1, steps=1, detach=True):
  """The same by a Python loop over episodes, gradients written out."""
  losses = []
  for first in (0, 4):
    support, query = ROWS[first : first + 2], ROWS[first + 2 : first + 4]
    own = p
    for _ in range(steps):
      change = (2 * (support * own[None] + support) * support).sum(0) / 2
      own = own - rate * (jax.lax.stop_gradient(change) if detach else change)
    losses.append(((query * own[None] + query) ** 2).sum() / 2)
  return sum(losses) / 2


@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize("steps", [1, 3])
def test_episodes_at_once_are_a_loop_over_them(order, steps):
  wish = TwoLevel(Toy(), 2, 0.1, steps, order)
  # The queries alone are counted.
  assert wish.count({"inputs": ROWS}, None) == 4
  run = jax.value_and_grad(lambda p: outer(wish, p))
  wanted = jax.value_and_grad(lambda p: by_hand(p, 0.1, steps, order == "first"))
  for found, other in zip(run(START), wanted(START), strict=True):
    np.testing.assert_allclose(found, other, rtol=1e-5)


def test_the_second_order_agrees_with_finite_differences():
  wish = TwoLevel(Toy(), 2, 0.1, 2, "second")
  change = np.asarray(jax.grad(lambda p: outer(wish, p))(START))
  first = jax.grad(lambda p: outer(dataclasses.replace(wish, order="first"), p))(START)
  size = 1e-2
  for i in range(3):
    # The loss is a polynomial of degree two: central differences are exact.
    near = [outer(wish, START.at[i].add(sign * size)) for sign in (1, -1)]
    assert change[i] == pytest.approx(float(near[0] - near[1]) / (2 * size), rel=2e-3)
  assert np.abs(change - first).max() > 0.1


def test_orders_agree_where_the_loss_is_linear():
  changes = [
    jax.grad(lambda p, order=order: outer(TwoLevel(Toy(1), 2, 0.5, 2, order), p))(START)
    for order in ("first", "second")
  ]
  np.testing.assert_array_equal(*changes)


def test_the_first_order_takes_no_second_derivative():
  """Its program holds no derivative of the inner gradient."""
  texts = [
    str(
      jax.make_jaxpr(
        jax.grad(lambda p, o=order: outer(TwoLevel(Toy(), 2, 0.1, 1, o), p))
      )(START)
    )  # fmt: skip
    for order in ("first", "second")
  ]
  assert texts[0].count("mul") < texts[1].count("mul")


def test_rows_of_one_task_stand_in_one_episode():
  """Whatever their order in the batch."""
  wish, task = TwoLevel(Toy(), 2, 0.1), jnp.array([0] * 4 + [1] * 4)
  mixed = jnp.array([4, 0, 5, 1, 2, 6, 7, 3])
  found = outer(wish, rows=ROWS[mixed], task=task[mixed])
  assert float(found) == pytest.approx(float(outer(wish, task=task)), rel=1e-6)
  assert float(found) != pytest.approx(float(outer(wish, rows=ROWS[mixed])), rel=1e-3)


def test_without_a_rate_it_is_training_on_the_queries():
  """On the tiny backbone, loss and gradient."""
  case = tools.case("prompt_tuning", PROMPT_LENGTH=3)
  batch = case.batch(tools.examples(count=4))
  trainable, frozen = case.split

  def change(wish, batch):
    run = step.gradients(case.model, wish, 1)
    found, (term,) = jax.jit(run)(trainable, frozen, batch, None)
    return jax.tree.leaves(found)[0], term

  query = {name: value[2:] for name, value in batch.items()}
  (left, one), (right, other) = (
    change(TwoLevel(rate=0.0), batch),
    change(CrossEntropy(), query),
  )
  assert float(one.weight) == float(other.weight)
  np.testing.assert_allclose(one.total, other.total, rtol=1e-5)
  tools.assert_close(left, right)
  moved, term = change(TwoLevel(rate=0.5), batch)
  assert float(term.total) != pytest.approx(float(one.total), rel=1e-4)


def test_evaluation_takes_the_inner_term_as_it_is():
  inner = CrossEntropy(label_smoothing=0.1)
  wish = Weighted((TwoLevel(inner), CrossEntropy()), (1.0, 0.5))
  assert (
    objectives.judged(TwoLevel(inner)) == inner == objectives.alone(TwoLevel(inner))
  )
  assert objectives.judged(wish).terms == (inner, CrossEntropy())
  assert objectives.judged(CrossEntropy()) == CrossEntropy()


@pytest.mark.parametrize(
  ("make", "words"),
  [
    (lambda: TwoLevel(episodes=0), "`TwoLevel.episodes`, `steps` and `rate` are 0"),
    (lambda: TwoLevel(order="third"), "`TwoLevel.order` is 'third'"),
    (lambda: outer(TwoLevel(Toy(), 3)), "but a part of a batch has 8 rows.*of 6"),
    (lambda: outer(TwoLevel(Toy(), branch="x")), "`TwoLevel.branch` is 'x'"),
  ],
)
def test_what_makes_no_episodes(make, words):
  with pytest.raises(ValueError, match=words):
    make()

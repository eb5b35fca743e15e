"""Expressions over earlier products, on arrays and on shapes; starts by hand."""

import jax
import jax.numpy as jnp
import method_tools as tools
import numpy as np
import pytest

from prompt_tuning.core import trainable as branches
from prompt_tuning.engine import identity, loop, start, step
from prompt_tuning.engine.facts import product_of
from prompt_tuning.objectives import objective as objectives
from prompt_tuning.objectives.cross_entropy import CrossEntropy
from prompt_tuning.procedures import surgery
from prompt_tuning.procedures.surgery import (
  Balanced,
  Concat,
  Copy,
  Fold,
  Fresh,
  Given,
  Masked,
  Mean,
  MeanOver,
  Svd,
  Take,
  Tile,
  Weighted,
)

draw = np.random.default_rng(0)
A, B = (draw.normal(size=(1, 4, 6)).astype(np.float32) for _ in range(2))
HELD = {"a:t": A, "b:t": B, "a:": {}, "a:tree": {"x": A, "y": {"z": B}}}
MASK = np.array([[1, 0], [0, 0], [1, 1], [1, 1]], np.float32)


def value(expression):
  """What it makes of arrays; the same shapes as it says of shapes."""
  held = {name: HELD[name] for name in surgery.reads(expression)}
  found = surgery.evaluated(expression, held)
  shapes = jax.eval_shape(lambda held: surgery.evaluated(expression, held), held)
  assert jax.tree.map(jnp.shape, found) == jax.tree.map(lambda x: x.shape, shapes)
  return found


@pytest.mark.parametrize(
  ("expression", "wanted"),
  [
    ("a:t", A),
    (Copy("a:t"), A),
    (Mean(["a:t", "b:t"]), (A + B) / 2),
    (Weighted(["a:t", "b:t"], [2.0, -0.5]), 2 * A - 0.5 * B),
    (Concat(["a:t", "b:t"]), np.concatenate([A, B], 1)),
    (Concat(["a:t", "b:t"], axis=0), np.concatenate([A, B], 0)),
    (Take("a:t", [3, 0]), A[:, [3, 0]]),
    (Take(Concat(["a:t", "b:t"]), [0, 5]), np.stack([A[:, 0], B[:, 1]], 1)),
    (Tile("a:t", 3), np.stack([A] * 3)),
    (MeanOver(Concat(["a:t", "b:t"], 0), 0), (A + B)[0] / 2),
    (MeanOver("a:t", -1), A.mean(-1)),
    (Masked("a:t", Given(MASK)), A * np.repeat(MASK, 3, 1)),
    (Given([[1.0, 2.0]]), np.array([[1.0, 2.0]])),
  ],
)
def test_expressions(expression, wanted):
  np.testing.assert_allclose(value(expression), wanted, rtol=1e-6)


def test_a_branch_is_changed_leaf_by_leaf():
  found = value(Weighted(["a:tree", "a:tree"], [1.0, 2.0]))
  np.testing.assert_allclose(found["y"]["z"], 3 * B, rtol=1e-6)
  assert value(Fresh()) is None


def test_balanced_factors_have_the_same_product():
  held = {"a:t": A, "a:r": B.swapaxes(1, 2)}
  left, right = (
    surgery.evaluated(Balanced("a:t", "a:r", side), held) for side in ("left", "right")
  )
  np.testing.assert_allclose((left**2).mean(-2), np.ones((1, 6)), rtol=1e-5)
  np.testing.assert_allclose(left @ right, A @ held["a:r"], rtol=1e-4, atol=1e-5)
  zero = surgery.evaluated(Balanced(Given(0 * A), "a:r", "left"), held)
  assert not np.asarray(zero).any()


@pytest.mark.parametrize("rank", [1, 4])
def test_factors_multiply_to_the_best_approximation(rank):
  left, right = value(Svd("a:t", rank, "left")), value(Svd("a:t", rank, "right"))
  assert left.shape == (1, 4, rank) and right.shape == (1, rank, 6)
  u, s, v = np.linalg.svd(A[0])
  wanted = (u[:, :rank] * s[:rank]) @ v[:rank]
  np.testing.assert_allclose((left @ right)[0], wanted, atol=1e-5)
  # Signs do not hang on the library: the same of the negated table.
  assert (np.take_along_axis(right, np.abs(right).argmax(-1)[..., None], -1) > 0).all()


@pytest.mark.parametrize(
  ("make", "words"),
  [
    (lambda: value(Take("a:t", [4])), "`Take.rows` holds 4, but there are 4 rows"),
    (lambda: value(Svd("a:t", 5, "left")), "`Svd.rank` is 5; it must be from 1 to 4"),
    (lambda: Svd("a:t", 5, "up"), "`Svd.side` is 'up'"),
    (lambda: Balanced("a:t", "b:t", "up"), "`Balanced.side` is 'up'"),
    (lambda: Mean("a:t"), "`Mean.of` is 'a:t'; it must be a list"),
    (lambda: Weighted(["a:t"], [1, 2]), "2 numbers for 1 branches"),
    (lambda: value(Mean(["a:t", "a:tree"])), "branches of different parts"),
    (lambda: value(Masked("a:t", Given(np.ones((4, 4))))), "must be .4, K. with K a"),
    (lambda: surgery.checked("start", ["a"]), "must be a mapping"),
  ],
)
def test_what_fits_nothing(make, words):
  with pytest.raises(ValueError, match=words):
    make()


# ---- starts


@pytest.fixture(scope="module")
def case():
  return tools.case("prompt_tuning", PROMPT_LENGTH=3)


@pytest.fixture(scope="module")
def products(case, tmp_path_factory):
  """Two products of the method, with tables of their own."""
  folder, spec = tmp_path_factory.mktemp("products"), case.model.backbone.spec
  found = {}
  for number, name in enumerate(("one", "two"), 1):
    table = jax.random.normal(jax.random.key(number), (1, 3, spec.width))
    trained = {"prompt": {"parameterise": {"prompt": table}}}
    card = {"method": "m", "backbone": {"fingerprint": "ab", "width": spec.width}}
    best = loop.Best(1, None)
    product_of(case.model, case.params, trained, card, best).save(folder / name)
    found[name] = folder / name
  return start.Products(found, "ab", spec)


def test_the_first_loss_is_that_of_the_expression_by_hand(case, products):
  wish = {"prompt": Weighted(["one:prompt", "two:prompt"], [0.25, 0.75])}
  start.check(wish, products, branches.flatten(case.params), "second")
  params = start.begun(case.params, start.values(wish, products))
  by_hand = 0.25 * np.asarray(products.values("one:prompt/parameterise/prompt"))
  by_hand += 0.75 * np.asarray(products.values("two:prompt/parameterise/prompt"))
  own = {**case.params, "prompt": {"parameterise": {"prompt": jnp.asarray(by_hand)}}}
  run = step.loss_fn(case.model, CrossEntropy())
  counts = objectives.counts(CrossEntropy(), case.batch(), case.model.backbone.spec.ids)
  losses = [
    float(run(tree, {}, case.batch(), None, counts)[0])
    for tree in (params, own, case.params)
  ]
  assert losses[0] == pytest.approx(losses[1], rel=1e-6) and losses[0] != losses[2]


def test_a_folded_prompt_is_a_table(case, products):
  """And the folder of another run's product stands for a phase."""
  folder = str(products.phases["one"])
  (found,) = start.values(
    {"prompt/parameterise/prompt": Fold(folder)}, products
  ).values()
  same = products.values(f"{folder}:prompt/parameterise/prompt")
  np.testing.assert_array_equal(found, same)
  wish = {"prompt/parameterise/prompt": Fold("one")}
  start.check(wish, products, branches.flatten(case.params), "second")


def test_shapes_and_backbones_are_compared_before_weights_are_read(
  case, products, monkeypatch
):
  monkeypatch.setattr(start.product, "load", lambda *_: pytest.fail("it was read"))
  targets = branches.flatten(case.params)
  longer = {"prompt": Concat(["one:prompt", "two:prompt"])}
  with pytest.raises(ValueError, match=r"gives \(1, 6, \d+\) where \(1, 3, \d+\)"):
    start.check(longer, products, targets, "second")
  other = start.Products(products.phases, "cd", case.model.backbone.spec)
  with pytest.raises(ValueError, match="A phase starts from .*one'"):
    start.check({"prompt": "one:prompt"}, other, targets, "second")


def test_the_longest_path_decides(products):
  leaf = "prompt/parameterise/prompt"
  for order in (1, -1):
    wish = [("prompt", "one:prompt"), (leaf, Given(A))][::order]
    np.testing.assert_array_equal(start.values(dict(wish), products)[leaf], A)


def test_the_digest_of_a_start():
  given = {"prompt/a": A, "prompt/b": B}
  assert identity.arrays(given) == identity.arrays(dict(reversed(given.items())))
  assert identity.arrays(given) != identity.arrays({**given, "prompt/b": B + 1})

"""Groups: rule, rate, decay and clipping by the name of a branch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prompt_tuning.engine import config
from prompt_tuning.engine.groups import Group
from prompt_tuning.engine.optimizer import Adafactor, AdamW, Optimizer, constant

DRAW = np.random.default_rng(0)


def normal(*shape):
  return jnp.asarray(DRAW.normal(size=shape), jnp.float32)


TREE = {"prompt": {"task": {"x": normal(3, 4), "y": normal(2)}, "rest": normal(5)}}
GRADIENTS = [jax.tree.map(lambda x: normal(*x.shape), TREE) for _ in range(3)]


def moved(optimizer, gradients=GRADIENTS):
  """The tree after steps, and the state."""
  transform = optimizer.build(TREE)
  tree, slots = TREE, transform.init(TREE)

  # One primitive at a time: a compiler rounds other programs in other ways.
  for gradient in gradients:
    updates, slots = transform.update(gradient, slots, tree)
    tree = optax.apply_updates(tree, updates)
  return tree, slots


def made(groups, rule=None, rate=0.1, **more):
  return Optimizer(rule or AdamW(), constant(rate), groups=groups, **more)


def same(found, wanted):
  assert jax.tree.structure(found) == jax.tree.structure(wanted)
  jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.parametrize("rule", [AdamW(weight_decay=0.1), Adafactor(weight_decay=0.1)])
def test_equal_groups_equal_one(rule):
  plain, _ = moved(Optimizer(rule, constant(0.1)))
  same(moved(made({}, rule))[0], plain)
  same(moved(made({"prompt": Group()}, rule))[0], plain)
  own = Group(rule, constant(0.1), weight_decay=0.1)
  same(moved(made({"prompt": own}, optax.sgd, rate=7.0))[0], plain)
  # optax compiles part of Adam for the whole tree of a group: other trees round anew.
  for names in (["prompt/task"], ["prompt/task", "prompt/rest"]):
    found, _ = moved(made(dict.fromkeys(names, Group()), rule))
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-6), found, plain
    )


def test_a_group_of_rate_zero_stays():
  found, _ = moved(made({"prompt/task": Group(schedule=constant(0.0))}))
  same(found["prompt"]["task"], TREE["prompt"]["task"])
  assert (np.asarray(found["prompt"]["rest"]) != TREE["prompt"]["rest"]).all()


def test_half_a_rate_is_half_the_first_update_of_its_branch_alone():
  plain, _ = moved(made({}, optax.sgd), GRADIENTS[:1])
  half = {"prompt/task": Group(schedule=constant(0.05))}
  found, _ = moved(made(half, optax.sgd), GRADIENTS[:1])
  same(found["prompt"]["rest"], plain["prompt"]["rest"])
  for name, before in TREE["prompt"]["task"].items():
    full = np.asarray(plain["prompt"]["task"][name] - before)
    part = np.asarray(found["prompt"]["task"][name] - before)
    np.testing.assert_allclose(part, full / 2, rtol=0, atol=1e-6)


def test_the_longest_path_decides():
  rates = {"prompt": 0.0, "prompt/task": 1.0, "prompt/task/y": 2.0}
  groups = {name: Group(schedule=constant(rate)) for name, rate in rates.items()}
  found, _ = moved(made(groups, optax.sgd), GRADIENTS[:1])
  same(found["prompt"]["rest"], TREE["prompt"]["rest"])
  for name, rate in (("x", 1.0), ("y", 2.0)):
    step = TREE["prompt"]["task"][name] - found["prompt"]["task"][name]
    gradient = GRADIENTS[0]["prompt"]["task"][name]
    np.testing.assert_allclose(step, rate * gradient, rtol=0, atol=1e-6)


def test_groups_are_clipped_apart():
  group = {"prompt/task": Group(clip_norm=0.5)}
  found, _ = moved(made(group, optax.sgd, rate=1.0), GRADIENTS[:1])
  step = jax.tree.map(lambda a, b: a - b, TREE, found)["prompt"]
  np.testing.assert_allclose(optax.tree.norm(step["task"]), 0.5, rtol=1e-5)
  gradient = GRADIENTS[0]["prompt"]
  np.testing.assert_allclose(step["rest"], gradient["rest"], rtol=0, atol=1e-6)
  # The optimiser's own is of the whole gradient, in front of all groups.
  both = made({"prompt/task": Group()}, optax.sgd, rate=1.0, clip_norm=0.5)
  step = jax.tree.map(lambda a, b: a - b, TREE, moved(both, GRADIENTS[:1])[0])
  np.testing.assert_allclose(optax.tree.norm(step), 0.5, rtol=1e-5)


def test_decay_is_the_groups_own():
  still = [jax.tree.map(jnp.zeros_like, TREE)]
  decays = made({"prompt/task": Group(weight_decay=0.5)}, AdamW(), rate=0.1)
  found, _ = moved(decays, still)
  same(found["prompt"]["rest"], TREE["prompt"]["rest"])
  kept = jax.tree.map(lambda x: x * 0.95, TREE["prompt"]["task"])
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
    found["prompt"]["task"],
    kept,
  )


def test_hooks_stand_before_the_clip_and_behind_the_rule():
  group = Group(before=[optax.scale(100.0)], clip_norm=1.0, after=[optax.scale(-3.0)])
  found, _ = moved(made({"prompt/task": group}, optax.sgd, rate=1.0), GRADIENTS[:1])
  step = jax.tree.map(lambda a, b: a - b, found, TREE)["prompt"]["task"]
  np.testing.assert_allclose(optax.tree.norm(step), 3.0, rtol=1e-5)
  gradient = GRADIENTS[0]["prompt"]["task"]["y"]
  assert (np.sign(step["y"]) == np.sign(gradient)).all()


def test_each_group_has_slots_of_its_own_leaves_alone():
  _, slots = moved(made({"prompt/task": Group(optax.sgd)}))
  shapes = sorted(x.shape for x in jax.tree.leaves(slots) if x.ndim)
  assert shapes == [(5,), (5,)]


@pytest.mark.parametrize("short", [False, True])
def test_a_name_of_nothing_is_refused_with_the_nearest(short):
  wrong = {"prompt/tusk": Group()}
  if short:
    wrong = {"prompt/tusk": constant(0.1)}
    rule, owner = made({}, branch_schedules=wrong), "BRANCH_SCHEDULES"
  else:
    rule, owner = made(wrong), "GROUPS"
  with pytest.raises(ValueError, match=f"`{owner}`.*'prompt/tusk'.*is 'prompt/task'"):
    rule.build(TREE)


@pytest.mark.parametrize(
  ("make", "words"),
  [
    (lambda: Group(clip_norm=0.0), "`Group.clip_norm` must be .* above 0"),
    (lambda: Group(weight_decay=-1.0), "`Group.weight_decay` must be"),
    (
      lambda: made({"prompt": constant(0.1)}),
      "GROUPS.*'prompt'.*give a `groups.Group`",
    ),
    (
      lambda: made({"prompt": Group()}, branch_schedules={"prompt": constant(0.1)}),
      "both name \\['prompt'\\]",
    ),
    (
      lambda: made({"prompt": Group(optax.sgd, weight_decay=0.1)}).build(TREE),
      "`Group.weight_decay` is 0.1.*takes none",
    ),
  ],
)
def test_what_no_group_can_be(make, words):
  with pytest.raises(ValueError, match=words):
    make()


def test_groups_in_gin(tmp_path):
  lines = [
    "from __gin__ import dynamic_registration",
    "from prompt_tuning.engine import groups",
    "from prompt_tuning.engine import optimizer",
    'GROUPS = {"prompt/task": @task/groups.Group()}',
    "task/groups.Group:",
    "  rule = @optimizer.AdamW()",
    "  schedule = @task/optimizer.constant()",
    "  clip_norm = 1.0",
    "task/optimizer.constant.learning_rate = 0.25",
  ]
  file = tmp_path / "groups.gin"
  file.write_text("\n".join(lines))
  config.parse(["gin/train.gin", str(file)], check=False)
  group = config.macro("GROUPS")["prompt/task"]
  assert group.rule == AdamW() and group.schedule(0) == 0.25 and group.clip_norm == 1

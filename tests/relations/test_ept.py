"""EPT: what it is without its own layers, and its equations in numpy."""

import math

import jax
import jax.numpy as jnp
import method_tools as tools
import numpy as np
import pytest

from prompt_tuning.core import trainable as branches
from prompt_tuning.core.context import Spec
from prompt_tuning.core.prompt import Drawn
from prompt_tuning.inits import uniform
from prompt_tuning.parameterisers.low_rank import LowRank
from prompt_tuning.transforms.fuse import Fuse
from prompt_tuning.transforms.subspaces import Subspaces


@pytest.fixture(scope="module")
def case():
  return tools.case("ept")


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def test_it_starts_as_dept(case):
  names = ("out", "up", "gate")
  off = {
    f"short__transforms_{i}__{name}": 0
    for i, name in zip((0, 1, 1), names, strict=True)
  }
  dept = tools.case("dept")
  same = {
    path.replace("/", "__"): tools.leaf(case, path)
    for path in (
      "short/parameterise/prompt",
      "offset/parameterise/left",
      "offset/parameterise/right",
    )
  }
  left, right = (
    tools.changed(case, **off).logits(),
    tools.changed(dept, **same).logits(),
  )
  tools.assert_close(left, right, 1e-6)
  assert np.abs(case.logits() - right).max() > 0.01


def test_the_factor_is_one_leaf(case):
  leaves = branches.flatten(case.params["prompt"])
  assert sum(path.endswith("/right") for path in leaves) == 1
  assert not any("memory" in path for path in leaves)


def test_its_equations(case):
  own = {
    path.removeprefix("short/"): np.asarray(leaf, np.float64)
    for path, leaf in branches.flatten(case.params["prompt"]).items()
  }
  table = own["parameterise/prompt"][0]
  memory = own["offset/parameterise/right"][0]
  query, key, value, out = (
    own[f"transforms_0/{name}"] for name in ("query", "key", "value", "out")
  )
  scores = table @ query @ (memory @ key).T / math.sqrt(query.shape[1])
  fused = table + softmax(scores) @ (memory @ value) @ out
  down, up, gate = (own[f"transforms_1/{name}"] for name in ("down", "up", "gate"))
  shares = softmax(fused @ gate)
  made = 0
  for j in range(len(down)):
    x = fused @ down[j]
    gelu = x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2
    made = made + shares[:, j : j + 1] * (fused + gelu @ up[j])
  found = case.model.inject(case.params, case.batch()).get("encoder.input").vectors
  tools.assert_close(found[0], made)


def test_equal_spaces_stay_equal():
  word, spec = Subspaces(2, 3), Spec(4, 9)
  drawn = Drawn(jnp.asarray(np.random.default_rng(0).normal(size=(1, 1, 5, 4))))
  params = word.init(jax.random.key(0), drawn, None, spec)["params"]
  down = jnp.broadcast_to(params["down"][:1], params["down"].shape)
  up = jnp.ones_like(params["up"])

  def loss(params):
    return jnp.sin(word.apply({"params": params}, drawn, None, spec).prompt).sum()

  gradient = jax.grad(loss)({**params, "down": down, "up": up})
  tools.assert_close(gradient["down"][0], gradient["down"][1])
  assert np.abs(gradient["down"]).max() > 0


def test_a_factor_that_is_not_there():
  drawn, spec = Drawn(jnp.ones((1, 1, 2, 4))), Spec(4, 9)
  with pytest.raises(ValueError, match="`Fuse.memory` is a LowRank without a factor"):
    Fuse(LowRank(1, uniform.zeros())).init(jax.random.key(0), drawn, None, spec)

"""A residual network around a prompt: when it is none, and what it may not mix."""

import jax
import jax.numpy as jnp
import method_tools as tools
import numpy as np
import pytest

from prompt_tuning.core.context import Spec
from prompt_tuning.core.prompt import Drawn
from prompt_tuning.transforms.residual_mlp import ResidualMlp


@pytest.fixture(scope="module")
def case():
  return tools.case("residual_prompt")


def plain(case):
  table = tools.leaf(case, "parameterise/prompt")
  return tools.changed(tools.case("prompt_tuning"), parameterise__prompt=table)


def test_without_its_norm_it_is_prompt_tuning(case):
  none = {"transforms_0__norm_scale": 0, "transforms_0__norm_bias": 0}
  off, static = tools.changed(case, **none), plain(case)
  tools.assert_close(off.logits(), static.logits())
  assert np.abs(case.plain_logits - static.logits()).max() > 0.1


def test_rows_share_one_network(case):
  order = np.array([3, 0, 5, 1, 4, 2])
  table = tools.leaf(case, "parameterise/prompt")
  other = tools.changed(case, parameterise__prompt=table[:, order])
  batch = case.batch()
  tools.assert_close(other.vectors(batch)[0], case.vectors(batch)[0][order], 1e-6)


def test_its_equations(case):
  down, down_bias, up, up_bias, scale, bias = (
    tools.leaf(case, f"transforms_0/{name}").astype(np.float64)
    for name in (
      "down_kernel", "down_bias", "up_kernel", "up_bias", "norm_scale", "norm_bias"
    )
  )  # fmt: skip
  table = tools.leaf(case, "parameterise/prompt")[0]
  made = np.maximum(table @ down + down_bias, 0) @ up + up_bias
  made = (made - made.mean(1, keepdims=True)) / np.sqrt(made.var(1)[:, None] + 1e-5)
  tools.assert_close(case.vectors(case.batch())[0], table + made * scale + bias)


def test_a_width_that_no_layer_has():
  drawn = Drawn(jnp.ones((1, 1, 2, 4)))
  with pytest.raises(ValueError, match="`ResidualMlp.width` must be at least 1, got 0"):
    ResidualMlp(0).init(jax.random.key(0), drawn, None, Spec(4, 9))

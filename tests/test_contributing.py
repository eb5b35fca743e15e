"""The worked examples of README.md ("Adding a method"), taken from the page and run."""

import importlib
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.backbones.t5.config import T5Config
from prompt_tuning.core import trainable as branches
from prompt_tuning.core.model import PromptedModel, features
from prompt_tuning.engine import config, optimizer, state, step
from prompt_tuning.objectives.cross_entropy import CrossEntropy

ROOT = pathlib.Path(__file__).resolve().parent.parent


LAYERS, H, P = 2, 8, 3
COUNTS = {"shared_direction": P + H, "mean_state": LAYERS * (P * H + P)}


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_worked_example(name, tmp_path, monkeypatch):
  readme = (ROOT / "README.md").read_text()
  for title in (f"{name}.py", f"{name}.gin"):
    block = re.search(rf"```\w+ title={re.escape(title)}\n(.*?)```", readme, re.S)
    (tmp_path / title).write_text(block.group(1))
  monkeypatch.syspath_prepend(str(tmp_path))
  importlib.invalidate_caches()
  config.parse([str(tmp_path / f"{name}.gin")], [f"PROMPT_LENGTH = {P}"])
  backbone = T5(T5Config(32, H, 2, 4, 16, LAYERS, 1))
  model = PromptedModel(backbone, config.macro("PROMPT"))
  weights = backbone.init(jax.random.key(0))
  params = {
    "backbone": weights,
    "prompt": model.init_prompt(jax.random.key(1), weights, lambda text: [3]),
  }
  trainable, frozen = branches.split(params, config.macro("TRAINABLE"))
  assert branches.count(trainable) == COUNTS[name]
  ids = jnp.asarray(np.random.default_rng(0).integers(3, 32, (2, 5)), jnp.int32)
  batch = features(ids, ids, model.lengths)
  rule = optimizer.Optimizer(optimizer.Adafactor(), optimizer.constant(0.1))
  transform = rule.build(trainable)
  begin = state.create(trainable, transform)
  moved, metrics = jax.jit(step.train_step(model, CrossEntropy(), transform))(
    begin, frozen, batch, jax.random.key(0)
  )
  assert float(metrics["loss"].compute()) > 0
  for before, after in zip(
    jax.tree.leaves(trainable), jax.tree.leaves(moved.trainable), strict=True
  ):
    assert not np.array_equal(before, after)

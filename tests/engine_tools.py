"""A toy model, and what tests of the engine share."""

import dataclasses
import types
from typing import Any

import jax
import numpy as np

from prompt_tuning.core.format import FORM
from prompt_tuning.core.forward import Forward
from prompt_tuning.core.ids import MARKS
from prompt_tuning.core.model import PromptedModel

B, U, V = 4, 5, 11


class Same:
  """A backbone whose states are its logits."""

  spec = types.SimpleNamespace(vocabulary=V, ids=MARKS)
  format = FORM

  @staticmethod
  def logits(params, states):
    return states

  @staticmethod
  def run(params, batch, bias, key):
    logits_BUV = params["table"][batch["decoder_inputs"]]
    if key is not None:
      logits_BUV *= jax.random.uniform(key)
    return logits_BUV + bias[None, None], None


@dataclasses.dataclass(frozen=True)
class Toy(PromptedModel):
  """A model whose logits are a row of a frozen table and a trained bias."""

  backbone: Any = Same()

  def logical_axes(self, params):
    return {}

  def init_prompt(self, key, backbone_params, encode):
    return {"bias": jax.random.uniform(key, (V,))}

  def prompted(self, params, batch, key=None):
    assert ("segment_ids" in batch) == (self.segments > 1)
    return params["prompt"]["bias"], {}

  def logits(self, params, batch):
    return Forward(self, params, batch).states


class Recorder:
  """Remembers what a run says."""

  def __init__(self):
    self.lines, self.said, self.steps = [], [], []

  def write(self, step, split, values):
    self.lines.append((step, split, dict(values)))

  def step(self, step):
    self.steps.append(step)

  def say(self, text):
    self.said.append(text)


def near(actual, expected, rtol=1e-5, atol=1e-6):
  jax.tree.map(
    lambda a, e: np.testing.assert_allclose(a, e, rtol=rtol, atol=atol),
    actual,
    expected,
  )


def toy_losses(params, inputs, targets):
  """(logits, cross-entropy of each target) of the toy, by numpy."""
  table, bias = params["backbone"]["table"], params["prompt"]["bias"]
  logits = np.asarray(table)[inputs] + np.asarray(bias)
  chosen = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
  return logits, np.log(np.exp(logits).sum(-1)) - chosen


def same(actual, expected):
  jax.tree.map(np.testing.assert_array_equal, actual, expected)

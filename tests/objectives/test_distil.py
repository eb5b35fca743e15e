"""Learning from a teacher against numpy."""

import dataclasses

import jax
import method_tools as tools
import numpy as np
import pytest
from forward_tools import run

from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.backbones.t5.stacking import stack_layers
from prompt_tuning.core import trainable as branches
from prompt_tuning.core.forward import Forward
from prompt_tuning.objectives.distil import Distil, DistilStates

TERMS = [
  Distil("same"),
  Distil("same", "mse"),
  DistilStates("same"),
  DistilStates("same", "decoder"),
  DistilStates("same", layers="states"),
  DistilStates("same", "decoder", "hidden"),
]


@pytest.mark.parametrize("term", TERMS)
def test_a_student_like_its_teacher_has_nothing_to_learn(taught, batch, term):
  loss, gradient, _ = run(term, *taught, batch)
  assert loss == pytest.approx(0, abs=1e-6)
  assert all(np.abs(x).max() < 1e-5 for x in jax.tree.leaves(gradient))
  other = dataclasses.replace(term, teacher="other")
  loss, gradient, _ = run(other, *taught, batch)
  assert loss > 1e-4
  assert any(np.abs(x).max() > 1e-5 for x in jax.tree.leaves(gradient))


def test_distillation_against_numpy(taught, batch):
  model, params = taught
  student = np.asarray(model.logits(params, batch), np.float64)
  own = {"backbone": params["backbone"], "prompt": params["teacher"]["other"]}
  teacher = np.asarray(model.logits(own, batch), np.float64)
  real = np.asarray(batch["targets"]) > 0

  def log_softmax(x):
    return (
      x
      - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))
      - (x.max(-1, keepdims=True))
    )

  for t in (1.0, 3.0):
    p, q = log_softmax(teacher / t), log_softmax(student / t)
    want = ((np.exp(p) * (p - q)).sum(-1) * t**2)[real].mean()
    found, _, _ = run(Distil("other", temperature=t), model, params, batch)
    assert found == pytest.approx(want, rel=1e-4)
  want = np.square(student - teacher).mean(-1)[real].mean()
  assert run(Distil("other", "mse"), model, params, batch)[0] == pytest.approx(
    want, rel=1e-4
  )
  (left, mask), (right, _) = (
    Forward(model, one, batch).encoded for one in (params, own)
  )
  want = np.square(np.asarray(left) - right).mean(-1)[np.asarray(mask)].mean()
  found, _, _ = run(DistilStates("other"), model, params, batch)
  assert found == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("name", ["states", "hidden"])
def test_traces_are_those_of_every_layer(taught, batch, name):
  """Scanned and unrolled alike; the pass itself stays what it is to the bit."""
  model, params = taught
  forward = Forward(model, params, batch)
  forward.asked |= {f"encoder.{name}", f"decoder.{name}"}
  plain = Forward(model, params, batch)
  np.testing.assert_array_equal(forward.states, plain.states)
  config = dataclasses.replace(model.backbone.config, scan_layers=True)
  scanned = dataclasses.replace(model, backbone=T5(config))
  stacked = {**params, "backbone": stack_layers(params["backbone"], config)}
  other = Forward(scanned, stacked, batch)
  other.asked = forward.asked
  width = {"states": config.emb_dim, "hidden": config.mlp_dim}[name]
  for side, depth in (("encoder", config.num_encoder_layers), ("decoder", None)):
    found = forward.trace(f"{side}.{name}")
    assert found.shape[0] == (depth or config.num_decoder_layers)
    assert found.shape[-1] == width
    tools.assert_close(other.trace(f"{side}.{name}"), found)
  if name == "states":
    scale = params["backbone"]["decoder"]["decoder_norm"]["scale"]
    last = np.asarray(forward.trace("decoder.states")[-1], np.float64)
    root = np.sqrt(np.square(last).mean(-1, keepdims=True) + 1e-6)
    tools.assert_close(forward.states, last / root * np.asarray(scale))


def test_every_layer_is_compared_against_numpy(taught, batch):
  model, params = taught
  own = {"backbone": params["backbone"], "prompt": params["teacher"]["other"]}
  pair = [Forward(model, one, batch) for one in (params, own)]
  for one in pair:
    one.asked |= {"decoder.hidden"}
  left, right = (np.asarray(one.trace("decoder.hidden"), np.float64) for one in pair)
  real = np.asarray(batch["targets"]) > 0
  want = np.square(left - right).mean((0, -1))[real].mean()
  term = DistilStates("other", "decoder", "hidden")
  found, _, _ = run(term, model, params, batch)
  assert found == pytest.approx(want, rel=1e-4)


def test_no_gradient_reaches_a_teacher(taught, batch):
  model, params = taught
  trains, frozen = branches.split(params, ("prompt", "teacher"))

  def loss(trains):
    forward = Forward(model, branches.merge(trains, frozen), batch)
    return Distil("other")(forward).total

  gradient = jax.jit(jax.grad(loss))(trains)
  assert all(not np.any(x) for x in jax.tree.leaves(gradient["teacher"]))
  assert any(np.any(x) for x in jax.tree.leaves(gradient["prompt"]))

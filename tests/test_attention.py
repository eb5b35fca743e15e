"""Attention by its switch: one meaning, whoever computes it.

No GPU or TPU is needed: cuDNN's call and the TPU's kernels are read in the lowered
program, and the latter run in Pallas's interpreter.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import method_tools as tools
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from prompt_tuning.backbones.common import fused
from prompt_tuning.backbones.t5 import attention
from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.engine import config as engine_config
from prompt_tuning.engine import step
from prompt_tuning.interop.load import load
from prompt_tuning.objectives.cross_entropy import CrossEntropy

METHODS = ("prompt_tuning", "prefix_tuning")


def official(query, key, value, bias, drop=None):
  assert drop is None
  return jax.nn.dot_product_attention(
    query, key, value, bias=bias, scale=1.0, implementation="xla"
  )


@functools.cache
def packed(name):
  """(model, params, batch): segments, with virtual positions or a prefix."""
  case = tools.case(name)
  model, batch, _ = case.packed()
  return model, case.params, batch


def logits(model, params, batch):
  # A new function: a patch must not find a program that was made without it.
  run = jax.jit(lambda *args: model.logits(*args))
  return run(params, batch)


@functools.cache
def ours(name):
  return logits(*packed(name))


def switched(model, **changes):
  config = dataclasses.replace(model.backbone.config, **changes)
  return dataclasses.replace(model, backbone=T5(config))


@pytest.mark.parametrize("name", METHODS)
def test_xla_is_what_jax_calls_attention(name, monkeypatch):
  wanted = ours(name)
  monkeypatch.setattr(attention, "attend", official)
  tools.assert_close(logits(*packed(name)), wanted)


@pytest.mark.parametrize("name", METHODS)
def test_kernels_are_given_the_same_attention(name, monkeypatch):
  # In the kernel's place stands JAX's own; what is tested is what it is handed.
  seen = []

  def kernel(query, key, value, bias):
    sizes = query.shape[1], key.shape[1]
    assert bias.shape == (tools.B, 2, *sizes)
    seen.append(sizes)
    return official(query, key, value, bias)

  wanted = ours(name)
  monkeypatch.setattr(fused, "LEAST_QUERIES", 21)
  monkeypatch.setattr(fused, "_pallas", kernel)
  model, params, batch = packed(name)
  with fused.lowering_for("tpu"):
    found = logits(switched(model, attention="pallas"), params, batch)
  # A pad may attend to nothing, and nothing is the mean of more where keys are padded.
  real = np.asarray(batch["targets"]) > 0
  tools.assert_close(found[real], wanted[real])
  # The layers of the encoder alone: targets are shorter than the least.
  assert seen == [(128, 128)] * tools.BACKBONE.config.num_encoder_layers


def arrays(dtype, B=1, Q=100, T=300, N=1, D=8):
  """Queries, keys, values, their frozen bias, and a gradient to pull back."""
  rng = np.random.default_rng(0)
  shapes = (B, Q, N, D), (B, T, N, D), (B, T, N, D), (B, Q, N, D)
  query, key, value, pull = (jnp.asarray(rng.normal(size=s), dtype) for s in shapes)
  bias = rng.normal(size=(1, N, Q, T))
  bias = bias + fused.MASKED * (rng.random((B, 1, 1, T)) < 0.3)
  return query, key, value, jnp.asarray(bias, jnp.float32), pull


def pulled(kind, query, key, value, bias, pull):
  """The sum that the gradient is of."""
  shape = query.shape[0], query.shape[2], query.shape[1]
  fitted = fused.bias_of(bias, shape, query.dtype, kind)
  return jnp.sum(fused.attend(query, key, value, fitted, kind) * pull)


def gradients(kind):
  return jax.jit(
    jax.value_and_grad(functools.partial(pulled, kind), (0, 1, 2)),
  )


def test_the_tpu_kernels_compute_it_forward_and_backward(monkeypatch):
  monkeypatch.setattr(fused, "LEAST_QUERIES", 1)
  query, key, value, bias, pull = arrays(jnp.float32)

  def reference(*qkv):
    return jnp.sum(attention.attend(*qkv, bias) * pull)

  wanted = jax.value_and_grad(reference, (0, 1, 2))(query, key, value)
  with fused.lowering_for("tpu"), pltpu.force_tpu_interpret_mode():
    found = gradients("pallas")(query, key, value, bias, pull)
  jax.tree.map(tools.assert_close, found, wanted)


CALLS = {
  "cudnn": ("gpu", "cuda", r"@__cudnn\$fmhaScaleBiasSoftmax(?:Backward)?\("),
  "pallas": ("tpu", "tpu", r"@tpu_custom_call\("),
}


@pytest.mark.parametrize("kind", CALLS)
def test_a_training_step_is_lowered_to_the_kernel_without_the_biass_gradient(
  kind, monkeypatch
):
  monkeypatch.setattr(fused, "LEAST_QUERIES", 21)
  target, platform, call = CALLS[kind]
  case = tools.case("prompt_tuning")
  # The kernels take heads whose width is a multiple of 8.
  changes = {"attention": kind, "dtype": "bfloat16", "scan_layers": True, "head_dim": 8}
  model = switched(case.model, **changes)
  backbone = model.backbone.shapes()
  whole = {"backbone": backbone, "prompt": case.params["prompt"]}
  frozen = {"backbone": whole.pop("backbone")}
  gradient = jax.jit(step.gradients(model, CrossEntropy(), 1))
  with fused.lowering_for(target):
    traced = gradient.trace(whole, frozen, case.batch(), None)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
  lines = [line for line in text.splitlines() if re.search(call, line)]
  calls = [line.rsplit(" -> ", 1) for line in lines]
  size = tools.T if kind == "cudnn" else 128
  assert all(f"tensor<{tools.B}x2x{size}x{size}x" in operands for operands, _ in calls)
  # One encoder layer, forward (the result, and two that backward reads; cuDNN has one,
  # and its scratch) and backward: gradients of queries, keys and values, and scratch.
  outputs = [results.count("tensor<") for _, results in calls]
  assert outputs == {"cudnn": [3, 4], "pallas": [3, 2, 1]}[kind]


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"attention": "flash"}, "'flash'; it must be one of"),
    ({"attention": "pallas", "dropout_rate": 0.1}, "DROPOUT_RATE is 0.1"),
    ({"attention": "cudnn"}, "ACTIVATION_DTYPE is 'float32'"),
    (
      {"attention": "cudnn", "dtype": "bfloat16", "head_dim": 12},
      "`T5Config.head_dim` is 12",
    ),
  ],
)
def test_what_a_kernel_cannot_do_is_refused(changes, words):
  with pytest.raises(ValueError, match=f"`T5Config.attention` .ATTENTION. is.*{words}"):
    dataclasses.replace(tools.BACKBONE.config, **changes)


@pytest.mark.parametrize(
  ("kind", "words"), [("cudnn", "NVIDIA GPUs"), ("pallas", "TPUs")]
)
def test_a_kernel_of_another_machine_is_refused_before_weights_are_read(kind, words):
  lines = [f"ATTENTION = {kind!r}", "ACTIVATION_DTYPE = 'bfloat16'"]
  engine_config.parse(["gin/backbones/mini.gin"], lines)
  backbone = engine_config.macro("BACKBONE")
  message = f"`ATTENTION` .* is '{kind}', which runs on {words}, but JAX runs on 'cpu'"
  with pytest.raises(ValueError, match=message):
    load("a folder that is not there", backbone)
  model = PromptedModel(backbone)
  ids = jnp.ones((1, 128), jnp.int32)
  batch = {"inputs": ids, "decoder_inputs": ids}
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(model.logits, {"backbone": backbone.shapes()}, batch)

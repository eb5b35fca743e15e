"""Steps compiled from shapes, and what is read from the programs."""

import importlib.util
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from prompt_tuning import precompile
from prompt_tuning.engine import budget, chips, config, hlo

TOY = """# A toy of two scanned layers.
include "configs/pod/base.gin"
include "gin/sharding/fully_sharded.gin"
include "gin/backbones/t5_1_1.gin"
include "gin/methods/prompt_tuning.gin"
VOCAB_SIZE = 64
EMB_DIM = 16
NUM_HEADS = 4
HEAD_DIM = 4
MLP_DIM = 32
NUM_ENCODER_LAYERS = 3
NUM_DECODER_LAYERS = 3
SCAN_LAYERS = True
REMAT_POLICY = "full"
NUM_PARTITIONS = 2
PROMPT_LENGTH = 4
TASK_FEATURE_LENGTHS = {"inputs": 12, "targets": 6}
DECODE_STEPS = 6
BATCH_SIZE = 8
EVAL_BATCH_SIZE = 8
"""


# ---- reading a program


def test_products_of_a_loop_count_as_often_as_it_runs():
  def layers(x, stack):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stack)[0]

  shapes = jnp.ones((4, 8)), jnp.ones((40, 8, 8))
  compiled = jax.jit(layers).lower(*shapes).compile()
  found = hlo.work(compiled.as_text())
  assert found.flops == 40 * 2 * 4 * 8 * 8
  # Each turn reads one layer, not the stack of all.
  stack = 40 * 8 * 8 * 4
  assert stack <= found.bytes < 40 * stack / 4
  # Where only the data say how often, the caller does.
  loop = jax.jit(
    lambda x, n: jax.lax.while_loop(
      lambda s: s[1] < n, lambda s: (s[0] @ s[0], s[1] + 1), (x, 0)
    )[0]
  )
  text = loop.lower(jnp.ones((8, 8)), jnp.int32(3)).compile().as_text()
  assert hlo.work(text, unknown=7).flops == 7 * 2 * 8**3


BOUNDED = """HloModule m

%slice (p0: f32[9,8,8], p1: s32[]) -> f32[8,8] {
  %p0 = f32[9,8,8] parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %part = f32[8,8]{1,0:S(1)} dynamic-slice(%p0, %p1, %zero, %zero)
}

%turn (p0: f32[4,8], p1: f32[9,8,8], p2: s32[]) -> f32[4,8] {
  %p0 = f32[4,8]{1,0:S(1)} parameter(0)
  %p1 = f32[9,8,8] parameter(1)
  %p2 = s32[] parameter(2)
  %w = f32[8,8]{1,0} fusion(%p1, %p2), kind=kLoop, calls=%slice
  %all = f32[8,16]{1,0} all-gather(%w), channel_id=3, replica_groups=[1,2]<=[2]
  ROOT %y = f32[4,8]{1,0} dot(%p0, %w), lhs_contracting_dims={1}
}

%b (p: (s32[], f32[4,8], f32[9,8,8])) -> (s32[], f32[4,8], f32[9,8,8]) {
  %p = (s32[], f32[4,8]{1,0:S(1)}, f32[9,8,8]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[4,8]{1,0:S(1)} get-tuple-element(%p), index=1
  %stack = f32[9,8,8] get-tuple-element(%p), index=2
  %y = f32[4,8]{1,0:S(1)} fusion(%x, %stack, %i), kind=kOutput, calls=%turn
  %z = f32[4,8]{1,0:S(1)} fusion(%y, %stack, %i), kind=kOutput, calls=%turn
  ROOT %t = (s32[], f32[4,8]{1,0:S(1)}, f32[9,8,8]) tuple(%i, %z, %stack)
}

%c (p: (s32[], f32[4,8], f32[9,8,8])) -> pred[] {
  %nine = s32[] constant(9)
  %p = (s32[], f32[4,8]{1,0:S(1)}, f32[9,8,8]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %nine), direction=LT
}

ENTRY %main (a: (s32[], f32[4,8], f32[9,8,8])) -> (s32[], f32[4,8], f32[9,8,8]) {
  %a = (s32[], f32[4,8]{1,0:S(1)}, f32[9,8,8]) parameter(0)
  ROOT %loop = (s32[], f32[4,8]{1,0:S(1)}, f32[9,8,8]) while(%a), condition=%c, body=%b
}
"""


def test_a_loop_by_its_bound_slices_in_kernels_and_memory_on_the_chip():
  found = hlo.work(BOUNDED)
  # Two products a turn, nine turns by the condition alone.
  assert found.flops == 9 * 2 * (2 * 4 * 8 * 8)
  # A layer's matrix and a counter each; x and y never leave the chip.
  assert found.bytes == 9 * 2 * (8 * 8 * 4 + 4)
  # One collective in two parts.
  assert found.collectives["all-gather"] == (9, 9 * 8 * 16 * 4, 9 * 8 * 16 * 2)


PROGRAM = """HloModule m

%body (p: (s32[], bf16[2,8])) -> (s32[], bf16[2,8]) {
  %p = (s32[], bf16[2,8]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = bf16[2,8]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %w = bf16[8,8]{1,0} constant({...})
  %gathered = (bf16[8,2]{1,0}, bf16[8,8]{1,0}) all-gather-start(%w), FOUR
  %whole = bf16[8,8]{1,0} all-gather-done(%gathered)
  %y = bf16[2,8]{1,0} convolution(%x, %whole), dim_labels=bf_io->bf
  ROOT %t = (s32[], bf16[2,8]{1,0}) tuple(%i, %y)
}

ENTRY %main (a: bf16[2,8]) -> bf16[2,8] {
  %a = bf16[2,8]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %begin = (s32[], bf16[2,8]{1,0}) tuple(%zero, %a)
  %loop = (s32[], bf16[2,8]{1,0}) while(%begin), TURNS
  %out = bf16[2,8]{1,0} get-tuple-element(%loop), index=1
  ROOT %sum = bf16[2,8]{1,0} all-reduce(%out), PAIRS
}
"""
ATTRIBUTES = {
  "FOUR": "replica_groups=[2,4]<=[8], dimensions={1}",
  "PAIRS": "replica_groups={{0,1},{2,3}}, to_apply=%add",
  "TURNS": 'body=%body, backend_config={"known_trip_count":{"n":"24"}}',
}


def test_a_program_as_tpus_write_it():
  text = PROGRAM
  for name, value in ATTRIBUTES.items():
    text = text.replace(name, value)
  found = hlo.work(text)
  assert found.flops == 24 * 2 * 2 * 8 * 8
  # 128 bytes are made a turn, three quarters of them come from the other three.
  assert found.collectives["all-gather"] == (24, 24 * 128, 24 * 96)
  # Two devices: each half travels once to be added and once to be shared.
  assert found.collectives["all-reduce"] == (1, 32, 32)
  assert found.gathered == 128
  assert found.sent == 24 * 96 + 32


@pytest.mark.parametrize(
  "window, labels, left, right, out, flops",
  [
    ("", "bf_io->bf", "4,8", "8,16", "4,16", 2 * 4 * 8 * 16),
    # A product of 3 matrices each, written as a dilated window of three places.
    (
      "size=3 stride=2 pad=0_0 lhs_dilate=3",
      "0bf_0io->0bf",
      "3,4,8",
      "3,8,5",
      "3,4,5",
      960,
    ),
  ],
)
def test_convolutions_that_are_products(window, labels, left, right, out, flops):
  text = (
    f"ENTRY %main (a: f32[{left}], b: f32[{right}]) -> f32[{out}] {{\n"
    f"  %a = f32[{left}] parameter(0)\n  %b = f32[{right}] parameter(1)\n"
    f"  ROOT %c = f32[{out}] convolution(%a, %b), window={{{window}}}, "
    f"dim_labels={labels}\n}}\n"
  )
  assert hlo.work(text).flops == flops


# ---- flags


@pytest.mark.parametrize(
  "argv, message",
  [
    (["--gin_file=x.gin"], "`--topology` is missing"),
    (["--topology=v5e:8x8", "--programs=train,sing"], r"`--programs` names \['sing'\]"),
  ],
)
def test_wrong_flags_are_refused(argv, message):
  with pytest.raises(ValueError, match=message):
    precompile.split_flags(argv)


@pytest.mark.parametrize(
  "name, message", [("v9:2x2", "must be one of"), ("v5e", "such as v5e:8x8")]
)
def test_wrong_topologies_are_refused(name, message):
  with pytest.raises(ValueError, match=message):
    chips.topology(name)


def test_without_the_compiler_for_tpus_the_extra_is_named(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match=r"pip install 'prompt-tuning\[tpu\]'"):
    chips.topology("v5e:8x8")


def test_an_architecture_is_needed(tmp_path, capsys):
  (tmp_path / "bare.gin").write_text('# Bare.\ninclude "gin/train.gin"\n')
  argv = [f"--gin_file={tmp_path}/bare.gin", "--topology=cpu:1"]
  with pytest.raises(SystemExit) as stop:
    precompile.main(argv)
  assert stop.value.code == 2
  assert "include a file of gin/backbones/" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["xl", "xxl"])
@pytest.mark.parametrize("method", ["prompt_tuning", "ipt_mlp"])
def test_pod_recipes_say_what_they_need(name, method):
  file = f"configs/pod/{name}_{method}.gin"
  config.parse_flags([f"--gin_file={file}"], "precompile", check=False)
  found = config.macros("BACKBONE PROMPT SHARDING BATCH_SIZE")
  assert found["BACKBONE"].config.scan_layers
  assert found["BACKBONE"].config.remat_policy == "full"
  assert found["SHARDING"].model_size == 8
  assert found["BACKBONE"].config.weights_dtype == "bfloat16"
  assert bool(found["SHARDING"].trainable_rules) == (method == "ipt_mlp")


# ---- whole reports, in a process of their own: eight devices, or libtpu's


def run(folder, topology, *flags, root):
  (folder / "toy.gin").write_text(TOY)
  command = [sys.executable, "-m", "prompt_tuning.precompile"]
  command += [f"--gin_file={folder}/toy.gin", f"--topology={topology}"]
  command += [f"--json={folder}/report.json", *flags]
  environment = {**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
  # The slot for eight devices is free: conftest's own flags are for one.
  done = subprocess.run(
    command, env=environment, cwd=root, capture_output=True, text=True, timeout=600
  )
  assert done.returncode == 0, done.stderr[-4000:]
  return json.loads((folder / "report.json").read_text()), done.stdout


def check(found, topology, chip_count):
  assert found["topology"] == topology and found["chips"] == chip_count
  assert found["fits"] and 0 < found["bytes_per_chip"] < found["chip_bytes"]
  assert found["compile_seconds"] > 0
  H, F, V, layers, P = 16, 32, 64, 3, 4
  block = 4 * H * H + 3 * H * F
  stacks = layers * (block + 2 * H) + layers * (block + 4 * H * H + 3 * H) + 2 * H
  assert found["parameters"] == stacks + 2 * V * H + 2 * 4 * 32 + P * H
  assert found["trained"] == P * H
  assert set(found["programs"]) == {"train", "eval", "decode"}
  # Two and a half passes at the least: forward, again, and back to the prompt.
  eval_flops = found["programs"]["eval"]["flops"]
  assert 2 * eval_flops < found["flops"] < 5 * eval_flops
  for one in found["programs"].values():
    assert one["collectives"]["all-gather"]["count"] >= layers
    assert one["step_seconds"] == max(one["roofline_seconds"].values())
    # Never more at once than the largest weight of a layer, or a batch of states.
    assert one["largest_all_gather"] <= 4 * max(V * H, 8 * 16 * H)
  held = found["weights"]
  # Frozen slices; the prompt and its slots whole.
  assert held["frozen"] < 4 * (found["parameters"] - P * H) / 2
  assert held["trained"] == 4 * P * H


def test_a_report_without_a_tpu_in_sight(tmp_path, root):
  info = tmp_path / "model-info.txt"
  found, printed = run(tmp_path, "cpu:8", f"--model_info={info}", root=root)
  check(found, "cpu:8", 8)
  lines = info.read_text().splitlines()
  # The prompt alone trains and has slots; what is frozen lies in slices.
  assert {line.split()[1] for line in lines if line.startswith("trains")} == {
    "prompt/parameterise/prompt"
  }
  slots = [line for line in lines if line.startswith("slot")]
  assert slots and all("/prompt/" in line or "/count " in line for line in slots)
  (kernel,) = [line for line in lines if "encoder/layers/mlp/wo/kernel" in line]
  assert "(None, 'model', 'data')" in kernel
  assert "fits: " in printed and "bound by" in printed
  assert found["setting"]["mesh"] == "replica 1 x data 4 x model 2"


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no libtpu")
def test_a_report_for_tpus(tmp_path, root):
  found, _ = run(tmp_path, "v5e:2x4", root=root)
  check(found, "v5e:2x4", 8)


def test_what_does_not_fit_is_said_with_what_does(monkeypatch, tmp_path):
  (tmp_path / "toy.gin").write_text(TOY)
  flags = [f"--gin_file={tmp_path}/toy.gin", "--gin.NUM_PARTITIONS=1"]
  flags += ["--gin.REMAT_POLICY='none'", "--gin.BATCH_SIZE=32"]
  config.parse_flags(flags, "precompile", check=False)
  device = jax.devices()[:1]
  asked = precompile.job(None, device)
  roomy = chips.CHIPS["cpu"]
  whole = budget.measure(asked, roomy, ["train"])
  small = chips.Chip(int(whole["bytes_per_chip"] * 0.9), 1e9, 1e9, 1e9)
  again = budget.measure(asked, small, ["train"])
  assert whole["fits"] and not again["fits"]
  told = []
  found = budget.nearest(asked, small, device, ["train"], told.append)
  assert found["fits"] and found["bytes_per_chip"] <= small.memory
  assert found["setting"] != again["setting"]
  report = {"topology": "cpu:1", "chips": 1, **again, "nearest": found}
  assert "does not fit: " in budget.table(report)
  assert "nearest that fits: NUM_PARTITIONS = 1, REMAT" in budget.table(report)
  rows = budget.search(asked, small, device, told.append, tries=len(told) + 1)
  # The job itself does not fit, and what was found above is among the first tried.
  assert [row["fits"] for row in rows] == [True] + [False] * (len(rows) - 1)
  assert rows[0]["remat_policy"] == found["setting"]["remat_policy"]
  assert len(told) == 2 * len(rows) - 1 and "too large" in told[-len(rows)]
  assert "ms" in budget.table({**report, "search": rows}).splitlines()[-1]


@pytest.mark.parametrize(
  "said",
  [
    "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 23.74G of 15.75G",
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
    "temporaries (23.74G) exceeds available HBM (15.75G).",
  ],
)
def test_what_the_compiler_has_no_room_for_does_not_fit(said):
  chip = chips.CHIPS["v5e"]
  found = budget._too_large(RuntimeError(said), chip, 1.0)
  assert not found["fits"] and found["bytes_per_chip"] == int(23.74 * 2**30)
  with pytest.raises(ValueError, match="refused"):
    budget._too_large(RuntimeError("INTERNAL: something else"), chip, 1.0)


@pytest.mark.parametrize("flag", ["json", "model_info"])
def test_a_report_replaces_no_file_of_another_kind(tmp_path, capsys, flag):
  (tmp_path / "toy.gin").write_text(TOY)
  (tmp_path / "mine").write_text("mine")
  command = [f"--gin_file={tmp_path}/toy.gin", "--topology=cpu:1"]
  with pytest.raises(SystemExit):
    precompile.main([*command, f"--{flag}={tmp_path}/mine"])
  assert "nothing in it says that this library wrote it" in capsys.readouterr().err
  assert (tmp_path / "mine").read_text() == "mine"

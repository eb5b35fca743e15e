"""The compiled training step: no product computes the gradient of a frozen weight.

The gradient of a kernel [I O] is a product whose result has the kernel's shape, either
way round. No activation of these sizes has such a shape, so results counted by shape
are gradients; full fine-tuning, which needs them all, shows that the count sees them.
"""

import collections
import dataclasses
import functools
import math
import pathlib
import re
import sys

import jax
import pytest

from prompt_tuning.core import trainable as branches

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "benchmarks"))
import arithmetic
import ours

SHAPE = ours.Sizes(
  width=16,
  heads=2,
  head_width=7,
  ff=20,
  vocabulary=61,
  encoder_layers=3,
  decoder_layers=2,
  batch=2,
  inputs=9,
  targets=3,
  prompt=4,
  generator=24,
  dropout=0.0,
)
METHODS = ("prompt_tuning", "ipt_mlp", "s_idpg_phm")

Dots = list[tuple[tuple[int, ...], int]]


@functools.cache
def traced(name, scan):
  """(traced step, frozen shapes)."""
  return ours.trace(name, dataclasses.replace(SHAPE, scan=scan))


def dots(jaxpr, times=1) -> Dots:
  """(shape of the result, operations) of every product, each turn of a scan counted.

  Where what runs depends on the device, it is what runs on a CPU. A norm, which is a
  product of rows, each with one other, is none of them.
  """
  found = []
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      result = equation.outvars[0].aval.shape
      (contracted, _), (rows, _) = equation.params["dimension_numbers"]
      left = equation.invars[0].aval.shape
      size = math.prod(left[axis] for axis in contracted)
      if len(result) > len(rows):
        found += [(result, 2 * math.prod(result) * size)] * times
    turns = times * equation.params.get("length", 1)
    values = dict(equation.params)
    if values.get("branches_platforms"):
      values["branches"] = values["branches"][values["branches_platforms"].index(None)]
    for value in jax.tree.leaves(list(values.values())):
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        found += dots(inner, turns)
  return found


def compiled_dots(text: str) -> Dots:
  """The same of a compiled program's text; a loop's body counts once."""
  found = []
  define = re.compile(r"%([\w.-]+) = \w+\[([\d,]*)\]")
  product = re.compile(
    r"%[\w.-]+ = \w+\[([\d,]*)\]\S* dot\(.*?%([\w.-]+), "
    r".*lhs_contracting_dims=\{([\d,]+)\}"
  )
  for computation in re.split(r"\n(?=\S)", text):
    sizes = {name: numbers(dims) for name, dims in define.findall(computation)}
    for result, left, contracted in product.findall(computation):
      size = math.prod(sizes[left][axis] for axis in numbers(contracted))
      found.append((numbers(result), 2 * math.prod(numbers(result)) * size))
  return found


def numbers(text: str) -> tuple[int, ...]:
  return tuple(int(word) for word in text.split(",") if word)


def kernels(tree, scan) -> collections.Counter:
  """How many matrices of each shape the products of a pass read."""
  found: collections.Counter = collections.Counter()
  for path, leaf in branches.flatten(tree).items():
    if not path.endswith("kernel"):
      continue
    layers, shape = (
      (leaf.shape[0], leaf.shape[1:]) if len(leaf.shape) == 3 else (1, leaf.shape)
    )
    assert len(leaf.shape) == 2 or scan
    found[tuple(sorted(shape))] += layers
  return found


def gradients(found: Dots, wanted: collections.Counter) -> collections.Counter:
  """Products whose results have the shape of a kernel."""
  shapes = (tuple(sorted(shape)) for shape, _ in found)
  return collections.Counter(shape for shape in shapes if shape in wanted)


@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
@pytest.mark.parametrize("name", METHODS)
def test_no_product_computes_a_frozen_weights_gradient(name, scan):
  program, frozen = traced(name, scan)
  wanted = kernels(frozen["backbone"], scan)
  assert wanted.total() == 3 * 7 + 2 * 11 + 1
  assert not gradients(dots(program.jaxpr.jaxpr), wanted)


@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
def test_full_fine_tuning_computes_each_of_them_once(scan):
  program, frozen = traced(ours.FULL, scan)
  assert not frozen
  wanted = kernels({"backbone": SHAPE.backbone().shapes()}, scan)
  assert gradients(dots(program.jaxpr.jaxpr), wanted) == wanted


@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
def test_a_prompt_step_costs_4_n_a_token(scan):
  program, _ = traced("prompt_tuning", scan)
  operations = sum(count for _, count in dots(program.jaxpr.jaxpr))
  need = arithmetic.need(SHAPE).prompt_step
  # Writing the prompt into its positions and back, products of one-hot rows.
  B, T, U = SHAPE.batch, SHAPE.inputs + SHAPE.prompt, SHAPE.targets
  need += 2 * 2 * B * T * SHAPE.prompt * SHAPE.width
  if not scan:
    # Nothing that trains lies below the decoder's first layer: unrolled, neither its
    # self-attention nor its queries to the encoder are differentiated.
    below = arithmetic.self_attention(SHAPE, B, U)
    joined = SHAPE.heads * SHAPE.head_width
    need -= below.weights + 2 * below.attention
    need -= 2 * B * U * SHAPE.width * joined + 2 * B * U * T * joined
  assert operations == need
  program, _ = traced(ours.FULL, scan)
  operations = sum(count for _, count in dots(program.jaxpr.jaxpr))
  assert operations == arithmetic.need(SHAPE, prompt=0).full_step


@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
def test_the_compiler_adds_none(scan):
  program, frozen = traced("prompt_tuning", scan)
  found = compiled_dots(program.lower().compile().as_text())
  assert not gradients(found, kernels(frozen["backbone"], scan))
  if not scan:
    asked = sum(count for _, count in dots(program.jaxpr.jaxpr))
    assert sum(count for _, count in found) == asked

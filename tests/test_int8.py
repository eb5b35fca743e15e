"""Frozen matrices as int8: how they round, what they compute, what refuses them."""

import dataclasses

import jax
import jax.numpy as jnp
import method_tools as tools
import numpy as np
import pytest

import prompt_tuning as pt
from prompt_tuning.backbones.common import int8
from prompt_tuning.backbones.t5 import files
from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.backbones.t5.stacking import stack_layers
from prompt_tuning.core import trainable as branches
from prompt_tuning.engine import sharding, step
from prompt_tuning.interop import huggingface
from prompt_tuning.interop.load import load
from prompt_tuning.objectives.cross_entropy import CrossEntropy


def draw(*shape):
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def widened(params):
  """The float weights that quantised ones stand for."""
  flat = branches.flatten(params)
  wide = {
    name: leaf.wide() if isinstance(leaf, int8.Quantised) else leaf
    for name, leaf in flat.items()
  }
  return branches.unflatten(wide)


@pytest.mark.parametrize(
  ("name", "channels"), [("a/kernel", (3, 1, 5)), ("embedding", (3, 4, 1))]
)
def test_each_output_channel_is_rounded_to_255_steps_of_its_own(name, channels):
  matrix = draw(3, 4, 5) * 10 ** draw(*channels)
  matrix[..., 0] = 0
  found = int8.quantise(name, matrix)
  assert found.values.dtype == np.int8 and found.scale.shape == channels
  assert (np.abs(matrix - found.wide()) <= found.scale * 0.501).all()
  axis = -1 if name == "embedding" else -2
  largest = np.abs(found.values.astype(int)).max(axis)
  assert set(np.unique(largest)) <= {0, 127} and not found.values[..., 0].any()


def test_a_product_and_its_gradient_are_those_of_the_matrix_it_stands_for():
  x, kernel = draw(2, 3, 4), int8.quantise("kernel", draw(4, 5))
  kernel = jax.device_put(kernel)
  found, pull = jax.vjp(lambda x: int8.product(x, kernel), x)
  wanted, pull_wide = jax.vjp(lambda x: x @ kernel.wide(), x)
  tools.assert_close(found, wanted)
  tools.assert_close(pull(found)[0], pull_wide(found)[0])


@pytest.mark.parametrize("tied", [False, True], ids=["own logits", "tied"])
def test_a_model_computes_what_its_widened_weights_compute(tied):
  case = tools.case("prompt_tuning")
  config = dataclasses.replace(
    tools.BACKBONE.config, logits_via_embedding=tied, scan_layers=True
  )
  model = dataclasses.replace(case.model, backbone=T5(config))
  params = stack_layers(tools.random_params(T5(config).shapes()), config)
  params = {**case.params, "backbone": int8.tree(params)}
  logits = jax.jit(model.logits)
  found = logits(params, case.batch())
  wide = {**params, "backbone": widened(params["backbone"])}
  # Five layers, each product in another order.
  tools.assert_close(found, logits(wide, case.batch()), 5e-5)


def arrays(jaxpr):
  """(shape, dtype) of everything that a program computes."""
  for equation in jaxpr.eqns:
    yield from ((out.aval.shape, out.aval.dtype) for out in equation.outvars)
    for value in jax.tree.leaves(list(equation.params.values())):
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        yield from arrays(inner)


def test_no_step_makes_floats_of_all_layers():
  case = tools.case("prompt_tuning")
  config = dataclasses.replace(
    tools.BACKBONE.config, num_encoder_layers=3, num_decoder_layers=5, scan_layers=True
  )
  model = dataclasses.replace(case.model, backbone=T5(config))
  backbone = jax.eval_shape(int8_shapes(model.backbone))
  gradient = step.gradients(model, CrossEntropy(), 1)
  trains = {"prompt": case.params["prompt"]}
  program = jax.make_jaxpr(gradient)(trains, {"backbone": backbone}, case.batch(), None)
  kernels = {
    leaf.shape
    for leaf in jax.tree.leaves(backbone, is_leaf=is_quantised)
    if is_quantised(leaf) and len(leaf.shape) == 3
  }
  assert kernels >= {(3, 16, 24), (5, 24, 16)}
  made = {shape for shape, dtype in arrays(program.jaxpr) if dtype != np.int8}
  assert not kernels & made and made >= {shape[1:] for shape in kernels}


def is_quantised(leaf):
  return isinstance(leaf, int8.Quantised)


def int8_shapes(backbone):
  """A function that makes weights of a backbone's shapes, quantised ones as int8."""

  def make():
    def leaf(name, one):
      if not int8.is_matrix(name):
        return jnp.zeros(one.shape)
      axis = -1 if name.endswith("embedding") else -2
      scale = list(one.shape)
      scale[axis] = 1
      return int8.Quantised(jnp.zeros(one.shape, jnp.int8), jnp.zeros(scale))

    flat = branches.flatten(backbone.shapes())
    return branches.unflatten({name: leaf(name, one) for name, one in flat.items()})

  return make


def same(left, right):
  for one, other in zip(left, right, strict=True):
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
def test_a_folder_is_read_as_int8(tiny_folder, scan):
  plain = load(tiny_folder)
  config = plain.backbone.config
  bound = T5(dataclasses.replace(config, weights_dtype="int8", scan_layers=scan))
  found = load(tiny_folder, bound)
  stored = stack_layers(plain.params, config) if scan else plain.params
  same(jax.tree.leaves(found.params), jax.tree.leaves(int8.tree(stored)))
  # A prompt belongs to the weights that were stored.
  assert found.fingerprint == plain.fingerprint
  sizes = [
    sum(leaf.nbytes for leaf in jax.tree.leaves(one.params)) for one in (plain, found)
  ]
  assert sizes[1] < sizes[0] / 3


def test_a_sharded_folder_is_read_as_int8(tiny_folder):
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("x",))
  place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "x"))
  name = "encoder/layers_0/mlp/wo/kernel"
  kept = [
    branches.flatten(load(tiny_folder, weights_dtype="int8", shardings=s).params)[name]
    for s in (None, {name: place})
  ]
  same(*map(jax.tree.leaves, kept))
  assert kept[1].values.sharding == place


def test_int8_neither_trains_nor_is_written(tiny_folder, tmp_path):
  loaded = load(tiny_folder, weights_dtype="int8")
  params = {"backbone": loaded.params, "prompt": {"a": jnp.ones(2)}}
  branches.check(params, ["prompt", "backbone/encoder/encoder_norm"])
  with pytest.raises(ValueError, match="held as int8 and cannot train.*WEIGHTS_DTYPE"):
    branches.check(params, ["backbone/decoder"])
  with pytest.raises(ValueError, match="rounded to int8 .20 matrices.*WEIGHTS_DTYPE"):
    files.save(tmp_path / "folder", loaded.backbone, loaded.params)
  with pytest.raises(ValueError, match="rounded to int8"):
    huggingface.write(tmp_path / "folder", loaded.backbone, loaded.params)
  assert not (tmp_path / "folder").exists()


def test_a_prompt_is_tuned_over_int8(tiny_folder):
  train = [("a fine day", "good"), ("a dull day", "bad")] * 2
  model = pt.load_model(tiny_folder, weights_dtype="int8")
  before = jax.device_get(model.loaded.params)
  prompt = pt.tune(model, train, steps=2, PROMPT_LENGTH=3)
  jax.tree.map(
    np.testing.assert_array_equal, before, jax.device_get(model.loaded.params)
  )
  answers, scores = pt.classify(model, prompt, ["a fine day"], ["good", "bad"])
  assert answers[0] in ("good", "bad") and np.isfinite(scores).all()


def test_on_a_mesh_its_scales_lie_beside_it():
  case = tools.case("prompt_tuning")
  params = {**case.params, "backbone": int8.tree(tools.backbone_params())}
  rules = (("batch", "data"), ("mlp", "model"))
  two = np.array(jax.devices()[:1] * 2)
  place = sharding.Sharding(num_partitions=2, rules=rules).over(two)
  name = "backbone/encoder/layers_0/mlp/wo/kernel"
  places = place.tree(params, case.model.logical_axes(params))
  found, leaf = (branches.flatten(tree)[name] for tree in (places, params))
  assert tuple(found.values.spec) == ("model",) and tuple(found.scale.spec) == ()
  wanted = leaf.values.size // 2 + leaf.scale.size * 4
  assert sharding.bytes_per_device(leaf, found) == wanted

"""Meshes, rules, and runs over 8 devices that equal those of one."""

import json
import os
import subprocess
import sys

import jax
import mesh_tools
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from prompt_tuning.engine import config, sharding

RULES = (
  ("batch", ("replica", "data")),
  ("vocab", "model"),
  ("mlp", "model"),
  ("heads", "model"),
  ("joined_kv", "model"),
  ("embed", "data"),
  ("kv", None),
)


def placement(rules=RULES, replica=1, data=4, model=2):
  """A mesh without devices."""
  mesh = AbstractMesh((replica, data, model), sharding.AXES)
  return sharding.Placement(mesh, sharding.Sharding(model, None, replica, rules))


@pytest.mark.parametrize(
  "names, shape, spec",
  [
    (("embed", "mlp"), (16, 32), ("data", "model")),
    (("mlp", "embed"), (32, 16), ("model", "data")),
    (("layers", "embed", "joined_kv"), (3, 16, 8), (None, "data", "model")),
    # Rows of a batch have taken the data axis already.
    (("batch", "length", "embed"), (8, 5, 16), ("data",)),
    (("batch", "length", "heads", "kv"), (8, 5, 6, 4), ("data", None, "model")),
    # 61 and 6 do not divide: these axes stay whole, the others do not.
    (("vocab", "embed"), (61, 16), (None, "data")),
    (("vocab", "embed"), (64, 6), ("model",)),
    # One mesh axis divides one axis of an array.
    (("heads", "mlp"), (4, 32), (None, "model")),
    (("unheard_of", None), (8, 8), ()),
    (None, (8, 8), ()),
    ((), (), ()),
  ],
)
def test_the_first_rule_that_fits_wins(names, shape, spec):
  assert placement().named(names, shape).spec == PartitionSpec(*spec)


def test_rows_and_replicas():
  place = placement(replica=2, data=2)
  assert place.rows == 4
  assert place.by_rows.spec == PartitionSpec(("replica", "data"))
  assert place.named(("embed", "mlp"), (16, 32)).spec == PartitionSpec("data", "model")
  batch = place.named(("batch", "length"), (8, 3))
  assert batch.spec == PartitionSpec(("replica", "data"))
  # Too few rows for all of them: the array stays whole.
  assert place.named(("batch", "length"), (2, 3)).spec == PartitionSpec()
  sharding.check_batch(8, 2, place)
  with pytest.raises(
    ValueError, match="`BATCH_SIZE` is 12.*multiple of 8 .*replica 2 x"
  ):
    sharding.check_batch(12, 2, place)


def test_bytes_on_one_device():
  place = placement()
  leaf = jax.ShapeDtypeStruct((16, 32), "bfloat16")
  assert sharding.bytes_per_device(leaf, place.named(("embed", "mlp"), (16, 32))) == 128
  assert sharding.bytes_per_device(leaf, place.replicated) == 1024


def test_slots_lie_beside_their_parameters():
  place = placement()
  params = {"prompt": {"kernel": np.zeros((16, 32)), "bias": np.zeros(32)}}
  axes = {"prompt/kernel": ("embed", "mlp"), "prompt/bias": ("mlp",)}
  assert place.tree(params, {}, trains=True)["prompt"]["kernel"].spec == PartitionSpec()
  own = place.tree(params, axes)
  slots = {
    "mu": params,
    "row": {"prompt": {"kernel": np.zeros(16)}},
    "count": np.int32(0),
  }
  found = place.beside(slots, params, own)
  assert found["mu"]["prompt"]["kernel"].spec == PartitionSpec("data", "model")
  assert found["mu"]["prompt"]["bias"].spec == PartitionSpec()
  assert found["row"]["prompt"]["kernel"].spec == found["count"].spec == PartitionSpec()


@pytest.mark.parametrize(
  "settings, message",
  [
    (
      {"num_partitions": 2, "model_parallel_submesh": (2, 2, 1, 1)},
      "axis of 4 devices",
    ),
    ({"num_partitions": 2}, "1 devices cannot be .* 1 x 2.*size of the model axis"),
    ({"model_parallel_submesh": (1, 3)}, "1 devices cannot be .* 1 x 3"),
    ({"replicas": 0}, "`REPLICAS` must be at least 1, got 0"),
    ({"rules": [("embed", "data")]}, "no rule for 'batch'"),
    ({"rules": [("batch", "data"), ("embed", "rows")]}, "'rows'.*'replica', 'data'"),
    ({"trainable_rules": [("embed", 3)]}, "trainable_rules` holds .*'embed', 3"),
  ],
)
def test_meshes_that_cannot_be(settings, message):
  with pytest.raises(ValueError, match=message):
    sharding.Sharding(**settings).over(jax.devices()[:1])


def test_t5x_words_are_understood():
  submesh = sharding.Sharding(model_parallel_submesh=(2, 2, 1, 1))
  assert submesh.model_size == sharding.Sharding(num_partitions=4).model_size == 4
  binding = "partitioning.PjitPartitioner.num_partitions = 4"
  with pytest.raises(config.ConfigError, match="NUM_PARTITIONS, the size of the model"):
    config.parse(["gin/sharding/model_parallel.gin"], [binding], check=False)
  with pytest.raises(config.ConfigError, match="Give --gin.MODEL_PARALLEL_SUBMESH="):
    config.parse(
      ["gin/sharding/data_parallel.gin"],
      ["sharding.Placement.model_parallel_submesh = (2, 2, 1, 1)"],
    )


@pytest.mark.parametrize("name", ["data_parallel", "model_parallel", "fully_sharded"])
def test_files_of_gin(name):
  file = f"gin/sharding/{name}.gin"
  config.parse([file], ["NUM_PARTITIONS = 1", "TRAINABLE_RULES = %AXIS_RULES"])
  found = config.macro("SHARDING")
  assert found.trainable_rules == found.rules
  place = found.over(jax.devices()[:1])
  assert (place.rows, place.describe()) == (1, "replica 1 x data 1 x model 1")
  on_four = sharding.Placement(placement().mesh, found)
  kernel = on_four.named(("embed", "mlp"), (16, 32)).spec
  assert {
    "data_parallel": (8, PartitionSpec()),
    "model_parallel": (4, PartitionSpec(None, "model")),
    "fully_sharded": (4, PartitionSpec("data", "model")),
  }[name] == (on_four.rows, kernel)


# ---- over 8 devices


@pytest.fixture(scope="module")
def runs(tmp_path_factory, root):
  """What `mesh_tools.py` wrote: method -> its settings and what they gave."""
  folder = tmp_path_factory.mktemp("meshes")
  environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
  command = [sys.executable, mesh_tools.__file__, str(folder)]
  done = subprocess.run(
    command, env=environment, capture_output=True, text=True, timeout=900
  )
  assert done.returncode == 0, done.stderr[-4000:]
  return {
    name: json.loads((folder / f"{name}.json").read_text())
    for name in mesh_tools.CHOSEN
  }


@pytest.mark.parametrize("name", sorted(mesh_tools.CHOSEN))
def test_five_steps_equal_those_of_one_device(runs, name):
  assert runs[name]["loss"] > 1
  assert len(runs[name]["settings"]) == len(mesh_tools.CHOSEN[name])
  for run in runs[name]["settings"]:
    assert any(key.startswith("trained/prompt") for key in run["differences"])
    assert max(run["differences"].values()) < 1e-5, run["setting"]


def test_weights_are_collected_layer_by_layer(runs):
  first = runs["prompt_tuning"]["settings"][0]
  assert (first["setting"]["rules"], first["setting"]["scan"]) == (
    "fully_sharded",
    True,
  )
  C = mesh_tools.CONFIG
  kernels = {
    (C.emb_dim, C.num_heads * C.head_dim),
    (C.emb_dim, C.mlp_dim),
    (C.mlp_dim, C.emb_dim),
    (C.emb_dim, C.vocab_size),
  }
  # A slice of a scan keeps an axis of one layer.
  found = {tuple(n for n in shape if n > 1) for shape in first["gathers"]}
  assert kernels <= found
  # Never all layers of a stack at once.
  whole = {(C.num_encoder_layers, *kernel) for kernel in kernels}
  assert not whole & found
  assert max(np.prod(shape) for shape in found) == C.emb_dim * C.vocab_size


def test_the_report_says_where_arrays_live(runs):
  divided, mixed = (run["info"] for run in runs["prompt_tuning"]["settings"][:2])
  assert "mesh replica 1 x data 8 x model 1; rows of a batch in 8 parts" in divided
  kernel = "decoder/layers/mlp/wi_0/kernel  [2x16x32]  float32"
  line = next(x for x in divided.splitlines() if kernel in x)
  assert line.endswith("(None, 'data')  512 bytes a device")
  # What trains is whole on every device unless a rule divides it.
  prompt = "trains  prompt/parameterise/prompt  [1x6x16]  float32"
  line = next(x for x in divided.splitlines() if x.startswith(prompt))
  assert line.endswith("('tables', 'prompt', 'embed')  whole  384 bytes a device")
  line = next(x for x in mixed.splitlines() if x.startswith(prompt))
  assert line.endswith("(None, None, 'data')  192 bytes a device")

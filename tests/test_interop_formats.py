"""From each format to each other: no bit is lost; and the spellings of T5X's trees."""

import dataclasses

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest

from prompt_tuning import export
from prompt_tuning.backbones.t5 import files
from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.backbones.t5.config import T5Config
from prompt_tuning.core.trainable import flatten, unflatten
from prompt_tuning.interop import finite, huggingface, source, t5x
from prompt_tuning.interop.load import open_source

CONFIG = T5Config(40, 8, 2, 4, 12, 2, 2)
TIED = dataclasses.replace(
  CONFIG, logits_via_embedding=True, mlp_activations=("relu",), num_decoder_layers=1
)
# What rounding, flushing or comparing by value would lose.
EDGES = np.array([-0.0, 1e-40, 3.3e38, 1 + 2**-23], np.float32)


def weights(config, dtype=np.float32):
  rng = np.random.default_rng(0)

  def one(leaf):
    value = rng.normal(size=leaf.shape).astype(np.float32)
    value.reshape(-1)[: len(EDGES)] = EDGES
    return value.astype(dtype)

  return jax.tree.map(one, T5(config).shapes())


def bits(params):
  return {
    name: np.asarray(value).view(f"u{value.dtype.itemsize}")
    for name, value in flatten(params).items()
  }


WRITERS = {
  "own": files.save,
  "hugging_face": huggingface.write,
  "t5x": t5x.write_legacy,
  "orbax": t5x.write_orbax,
}


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["t5_1_1", "t5_1_0"])
def test_a_chain_of_formats_keeps_every_bit(tmp_path, config, dtype):
  params = jax.tree.map(jnp.asarray, weights(config, dtype))
  wanted = bits(params)
  backbone = T5(config)
  for kind in ("own", "hugging_face", "t5x", "orbax", "hugging_face", "own"):
    WRITERS[kind](tmp_path / kind, backbone, params)
    backbone, params = source.load(open_source(tmp_path / kind))
    assert backbone.config == config, kind
    assert {x.dtype for x in flatten(params).values()} == {np.dtype(dtype)}, kind
    found = bits(params)
    assert set(found) == set(wanted)
    for name, value in wanted.items():
      np.testing.assert_array_equal(found[name], value, err_msg=f"{kind}: {name}")


def test_version_2_has_no_name_for_bfloat16(tmp_path):
  params = weights(CONFIG, jnp.bfloat16)
  folder = t5x.write_legacy(tmp_path, T5(CONFIG), params)
  for file in folder.glob("*/.zarray"):
    file.write_text(file.read_text().replace('"bfloat16"', '"<u2"'))
  file = folder / "checkpoint"
  tree = msgpack.unpackb(file.read_bytes(), ext_hook=msgpack.ExtType)
  scale = np.asarray(params["encoder"]["encoder_norm"]["scale"]).view(np.uint16)
  data = msgpack.packb((scale.shape, "uint16", scale.tobytes()))
  tree["version"] = 2
  tree["optimizer"]["target"]["encoder"]["encoder_norm"]["scale"] = msgpack.ExtType(
    1, data
  )
  file.write_bytes(msgpack.packb(tree))
  found = bits(source.load(open_source(tmp_path))[1])
  for name, value in bits(params).items():
    np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize("number, step", [(6.0, 6), (6.5, None)])
def test_a_resumed_run_of_t5x_counts_in_the_type_it_restores_in(tmp_path, number, step):
  folder = t5x.write_legacy(tmp_path, T5(CONFIG), weights(CONFIG), step=6)
  assert open_source(tmp_path).step == 6
  file = folder / "checkpoint"
  tree = msgpack.unpackb(file.read_bytes(), ext_hook=msgpack.ExtType)
  data = msgpack.packb(((), "float32", np.float32(number).tobytes()))
  tree["optimizer"]["state"]["step"] = msgpack.ExtType(3, data)
  file.write_bytes(msgpack.packb(tree))
  assert open_source(tmp_path).step == step


def test_scanned_weights_are_written_unrolled(tmp_path):
  params = weights(CONFIG)
  files.save(tmp_path / "own", T5(CONFIG), jax.tree.map(jnp.asarray, params))
  scanned = T5(dataclasses.replace(CONFIG, scan_layers=True))
  _, stacked = source.load(open_source(tmp_path / "own"), scanned)
  assert files.fingerprint(stacked) == files.fingerprint(params)
  for kind, write in WRITERS.items():
    write(tmp_path / f"{kind}_2", scanned, stacked)
    _, again = source.load(open_source(tmp_path / f"{kind}_2"))
    assert files.fingerprint(again) == files.fingerprint(params), kind


def test_backbones_leave_by_the_verb(tmp_path, tiny_folder):
  for to in ("t5x", "t5x_orbax", "huggingface"):
    out = tmp_path / to
    export.main([f"--to={to}", f"--checkpoint={tiny_folder}", f"--output={out}"])
    theirs = source.load(open_source(out))[1]
    ours = source.load(open_source(type(out)(tiny_folder)))[1]
    assert files.fingerprint(ours) == files.fingerprint(theirs)
  with pytest.raises(ValueError, match="`checkpoint` is missing"):
    export.export("t5x", str(tmp_path / "x"))


def scalable(params, middle, table="relpos_bias"):
  """The tree of T5X's scalable network: layers along axis 1, heads apart."""
  flat, found = flatten(params), {}
  heads, width = CONFIG.num_heads, CONFIG.head_dim
  for name, value in flat.items():
    side, _, rest = name.partition("/layers_0/")
    if name.endswith("rel_embedding"):
      side = name.partition("/")[0]
      same = np.stack([value] * 2, axis=1)
      found[f"{side}/{middle[side]}/{table}/rel_embedding"] = same
    elif rest:
      layers = [flat[f"{side}/layers_{i}/{rest}"] for i in range(2)]
      if "attention/" in rest and rest.endswith("kernel"):
        out = "/out/" in rest
        shape = (heads, width, -1) if out else (CONFIG.emb_dim, heads, width)
        layers = [layer.reshape(shape) for layer in layers]
      found[f"{side}/{middle[side]}/{rest}"] = np.stack(layers, axis=1)
    elif "/layers_" not in name:
      found[name] = value
  return found


OLD = {"encoder": "encoder", "decoder": "decoder"}
NEW = {"encoder": "layers", "decoder": "layers"}


def write_tree(folder, flat, monkeypatch):
  """A checkpoint of another network's tree, which is not unrolled first."""
  leaves = {name: t5x_leaf(value) for name, value in flat.items()}
  monkeypatch.setattr(t5x, "unrolled", lambda params: leaves)
  return t5x.write_legacy(folder, T5(CONFIG), unflatten(flat))


def t5x_leaf(value):
  from prompt_tuning.backbones.t5.stacking import Leaf

  return Leaf(value)


@pytest.mark.parametrize(
  ("middle", "table"), [(OLD, "relpos_bias"), (NEW, "relative_posemb")]
)
def test_trees_of_the_scalable_network(tmp_path, monkeypatch, middle, table):
  params = weights(CONFIG)
  flat = scalable(params, middle, table)
  assert flat[f"encoder/{middle['encoder']}/attention/query/kernel"].shape == (
    8, 2, 2, 4,
  )  # fmt: skip
  opened = open_source(write_tree(tmp_path, flat, monkeypatch))
  assert opened.config == CONFIG
  _, found = source.load(opened)
  assert files.fingerprint(found) == files.fingerprint(params)
  kernel = opened.arrays["decoder/layers_1/self_attention/out/kernel"]
  cut = (slice(3, 7), slice(2, 4))
  whole = flatten(params)["decoder/layers_1/self_attention/out/kernel"]
  np.testing.assert_array_equal(kernel.read(cut), whole[cut])


def test_layers_with_biases_of_their_own_are_refused(tmp_path, monkeypatch):
  params = weights(CONFIG)
  flat = scalable(params, OLD)
  table = flat["decoder/decoder/relpos_bias/rel_embedding"].copy()
  table[0, 1, 0] += 1
  flat["decoder/decoder/relpos_bias/rel_embedding"] = table
  folder = write_tree(tmp_path / "stacked", flat, monkeypatch)
  with pytest.raises(ValueError, match="2 layers of the decoder has position biases"):
    open_source(folder)
  flat = flatten(params)
  shared = flat.pop("encoder/relpos_bias/rel_embedding")
  for layer in range(2):
    flat[f"encoder/layers_{layer}/relpos_bias/rel_embedding"] = shared + layer
  folder = write_tree(tmp_path / "unrolled", flat, monkeypatch)
  with pytest.raises(ValueError, match=r"\(as in umT5\)"):
    open_source(folder)


def test_a_decoder_alone_is_refused(tmp_path, monkeypatch):
  flat = {n: x for n, x in flatten(weights(CONFIG)).items() if "encoder/" not in n}
  folder = write_tree(tmp_path, flat, monkeypatch)
  with pytest.raises(ValueError, match="is no T5: encoder/relpos.* is missing"):
    open_source(folder)


def test_mixed_up_files(tmp_path):
  for rows, width in ((40, 8), (40, 16)):
    config = dataclasses.replace(CONFIG, vocab_size=rows, emb_dim=width)
    huggingface.write(tmp_path / str(width), T5(config), weights(config))
    params = jax.tree.map(jnp.asarray, weights(config))
    files.save(tmp_path / f"own_{width}", T5(config), params)
  for one, other, words in (
    ("8", "16", "not of one T5: d_model: 8 in config.json, 16 in the weights"),
    ("own_8", "own_16", "not of one backbone: emb_dim: 8 in config.json, 16 in"),
  ):
    data = (tmp_path / other / "model.safetensors").read_bytes()
    (tmp_path / one / "model.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=words):
      open_source(tmp_path / one)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("kind", WRITERS)
def test_a_number_that_is_not_finite_is_refused_by_name(tmp_path, kind, dtype):
  params = jax.tree.map(jnp.asarray, weights(CONFIG, dtype))
  kernel = params["decoder"]["layers_1"]["mlp"]["wi_0"]["kernel"]
  params["decoder"]["layers_1"]["mlp"]["wi_0"]["kernel"] = kernel.at[-1, -1].set(np.nan)
  WRITERS[kind](tmp_path / "x", T5(CONFIG), params)
  opened = open_source(tmp_path / "x")
  scanned = T5(dataclasses.replace(CONFIG, scan_layers=True))
  mesh = jax.make_mesh((1,), ("x",))
  name = "decoder/layers_1/mlp/wi_0/kernel"
  place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
  for more in (
    {},
    {"expected": scanned},
    {"dtype": "int8"},
    {"dtype": "float32"},
    {"shardings": {name: place}},
  ):
    with pytest.raises(source.UnreadableError, match=f"{name} holds NaN or inf"):
      source.load(opened, **more)


def test_a_number_too_large_for_the_type_asked_for_is_refused(tmp_path):
  params = weights(CONFIG)
  params["encoder"]["encoder_norm"]["scale"][0] = 3.4e38
  files.save(tmp_path / "x", T5(CONFIG), jax.tree.map(jnp.asarray, params))
  source.load(open_source(tmp_path / "x"))
  with pytest.raises(source.UnreadableError, match="encoder_norm/scale holds"):
    source.load(open_source(tmp_path / "x"), dtype="bfloat16")


def test_numbers_are_finite_wherever_they_stand():
  for dtype in (np.float16, np.float32, np.float64, jnp.bfloat16):
    array = np.zeros((3, finite._BLOCK), dtype)
    assert finite.is_finite(array) and finite.is_finite(array[:, ::2])
    assert finite.is_finite(array[:0])
    for number in (np.nan, -np.nan, np.inf, -np.inf):
      array[2, -2] = number
      assert not finite.is_finite(array) and not finite.is_finite(array[:, ::2])
      assert finite.is_finite(array[:2])

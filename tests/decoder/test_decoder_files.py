"""Folders of decoders: what is read, saved, and refused in one sentence."""

import dataclasses
import json
import shutil

import decoder_tools as tools
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from prompt_tuning.backbones.decoder import files
from prompt_tuning.core.trainable import flatten
from prompt_tuning.interop import decoder_family, families
from prompt_tuning.interop.lazy import UnreadableError, held
from prompt_tuning.interop.load import found_at


def copied(name, folder):
  shutil.copytree(tools.GOLDENS / name, folder)
  return folder


def restated(folder, **fields):
  path = folder / "config.json"
  stated = {**json.loads(path.read_text()), **fields}
  path.write_text(json.dumps({k: v for k, v in stated.items() if v != "absent"}))


def rewritten(folder, change):
  path = folder / "model.safetensors"
  safetensors_numpy.save_file(change(safetensors_numpy.load_file(path)), path)


def read(folder, **switches):
  opened = decoder_family.open_source(folder)
  expected = opened.backbone.recast(**switches) if switches else None
  return decoder_family.load(opened, expected, None, None)


def same(left, right):
  jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.mark.parametrize("name", tools.NAMES)
def test_a_folder_of_ours_gives_the_same_bits(name, tmp_path):
  backbone, weights = tools.loaded(name)
  files.save(tmp_path / "ours", backbone, weights)
  family, opened = found_at(tmp_path / "ours")
  assert family is families.of("decoder") and opened.spec == backbone.spec
  again, params = read(tmp_path / "ours")
  assert again == backbone
  same(params, weights)
  scanned, stacked = read(tmp_path / "ours", scan_layers=True)
  assert stacked["decoder"]["layers"]["mlp"]["wo"]["kernel"].ndim == 3
  assert files.fingerprint(stacked) == files.fingerprint(weights)
  files.save(tmp_path / "ours", scanned, stacked)
  same(read(tmp_path / "ours")[1], weights)


def test_names_without_the_prefix_and_with_buffers_are_read(tmp_path):
  folder = copied("gpt2", tmp_path / "gpt2")

  def bare(tensors):
    found = {n.removeprefix("transformer."): x for n, x in tensors.items()}
    found["h.0.attn.bias"] = np.ones((1, 1, 4, 4), np.float32)
    found["h.1.attn.masked_bias"] = np.float32(-1e4)[None]
    return {**found, "lm_head.weight": found["wte.weight"].copy()}

  rewritten(folder, bare)
  same(read(folder)[1], tools.loaded("gpt2")[1])


def test_either_name_of_a_neox_head_and_of_its_positions_is_read(tmp_path):
  folder = copied("neox", tmp_path / "neox")

  def renamed(tensors):
    return {n.replace("embed_out", "lm_head"): x for n, x in tensors.items()}

  rewritten(folder, renamed)
  rope = {"rope_parameters": "absent", "rotary_pct": 0.5, "rotary_emb_base": 10000}
  restated(folder, **rope)
  backbone, weights = read(folder)
  assert backbone == tools.loaded("neox")[0]
  same(weights, tools.loaded("neox")[1])


def test_tensors_from_elsewhere_open_as_a_folder_does():
  folder = tools.GOLDENS / "llama_tied"
  fields = json.loads((folder / "config.json").read_text())
  tensors = safetensors_numpy.load_file(folder / "model.safetensors")
  lazy = {name: held(value) for name, value in tensors.items()}
  opened = decoder_family.open_tensors("a file", fields, lazy)
  assert opened.path == "a file" and opened.vocabulary is None
  same(decoder_family.load(opened, None, None, None)[1], tools.loaded("llama_tied")[1])


def test_int8_holds_matrices_alone(tmp_path):
  backbone, weights = read(tools.GOLDENS / "gpt2", weights_dtype="int8")
  shapes = jax.tree.map(lambda x: (x.shape, x.dtype), backbone.held_shapes())
  assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), weights)
  flat = flatten(weights)
  assert flat["decoder/layers_0/mlp/wi/bias"].dtype == jnp.float32
  with pytest.raises(ValueError, match="rounded to int8"):
    files.save(tmp_path / "no", backbone, weights)


REFUSED = {
  "rope": ("llama_tied", {"rope_parameters": {"rope_type": "llama3"}}, "'default'"),
  "scaling": ("llama_tied", {"rope_scaling": {"type": "linear"}}, "'default'"),
  "inverse": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "False alone"),
  "post": ("opt", {"do_layer_norm_before": False}, "True alone"),
  "projected": ("opt", {"word_embed_proj_dim": 6}, "one width"),
  "activation": ("neox", {"hidden_act": "mish"}, "hidden_act is 'mish'"),
  "heads": ("llama_tied", {"num_key_value_heads": 4}, "divisor of num_heads = 6"),
  "size": ("gpt2", {"n_layer": "two"}, "n_layer is 'two'"),
  "mark": ("gpt2", {"eos_token_id": 37}, "end_id.*an id below"),
  "no head": ("llama_tied", {"tie_word_embeddings": False}, "lacks lm_head.weight"),
  "layers": ("gpt2", {"n_layer": 3}, "lacks h.2.ln_1.weight"),
  "more": ("gpt2", {"n_layer": 1}, "holds what no such model has.*h.1"),
  "width": ("gpt2", {"n_embd": 24}, "c_attn.weight of shape"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_such_model_is_refused(kind, tmp_path):
  name, fields, words = REFUSED[kind]
  folder = copied(name, tmp_path / name)
  restated(folder, **fields)
  with pytest.raises(UnreadableError, match=words):
    decoder_family.open_source(folder)


def test_weights_of_another_shape_or_value_are_refused(tmp_path):
  folder = copied("llama_tied", tmp_path / "llama")
  restated(folder, intermediate_size=21)
  with pytest.raises(ValueError, match=r"wi_0/kernel \(18, 20\) instead of \(18, 21\)"):
    read(folder)
  restated(folder, intermediate_size=20)
  rewritten(
    folder,
    lambda x: {n: v * np.float32("nan" if "norm" in n else 1) for n, v in x.items()},
  )
  with pytest.raises(ValueError, match="finite"):
    read(folder)


def test_a_damaged_folder_of_ours_is_refused(tmp_path):
  backbone, weights = tools.loaded("gpt2")
  files.save(tmp_path / "ours", backbone, weights)
  restated(tmp_path / "ours", colour="red")
  with pytest.raises(UnreadableError, match="says colour, which is unknown"):
    found_at(tmp_path / "ours")
  restated(tmp_path / "ours", colour="absent", norm="group")
  with pytest.raises(UnreadableError, match="norm` must be one of"):
    found_at(tmp_path / "ours")


def test_more_positions_than_the_table_has_are_refused():
  model, params = tools.prompted("gpt2", "decoder.input", 3)
  most = model.backbone.config.num_positions
  ids = jnp.ones((1, most - 2), jnp.int32)
  batch = model.features(ids, jnp.ones((1, 2), jnp.int32))
  with pytest.raises(ValueError, match=f"take {most + 2} positions.*has {most}"):
    jax.eval_shape(model.logits, params, batch)
  short = model.features(ids[:, :20], ids[:, :1])
  reading, injection = jax.jit(model.read)(params, short)
  with pytest.raises(ValueError, match=f"take 41 positions.*has {most}"):
    model.backbone.prefill(params["backbone"], reading, 18, injection)


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"num_kv_heads": 4}, "divisor of num_heads = 6"),
    ({"norm": "batch"}, "norm` must be one of"),
    ({"rope_share": 0.3}, "rope_share"),
    ({"attention": "cudnn"}, "attention` must be one of"),
    ({"end_id": 37}, "an id below vocab_size = 37"),
    ({"emb_dim": 0}, "emb_dim` must be at least 1"),
    ({"norm_epsilon": 0.0}, "norm_epsilon` must be more than 0"),
    ({"weights_dtype": "int4"}, "DecoderConfig.weights_dtype"),
    ({"remat_policy": "some"}, "DecoderConfig.remat_policy"),
  ],
)
def test_configs_that_make_no_sense_are_refused(fields, words):
  config = tools.loaded("llama_tied")[0].config
  with pytest.raises(ValueError, match=words):
    dataclasses.replace(config, **fields)

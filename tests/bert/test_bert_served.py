"""An encoder asked by the verb and served: answers are those of Python."""

import json

import bert_tools as tools
import numpy as np
import pytest

import prompt_tuning as pt
from prompt_tuning import infer
from prompt_tuning.backbones.bert.backbone import Bert
from prompt_tuning.backbones.bert.config import BertConfig
from prompt_tuning.export import export
from prompt_tuning.interop import bert_hugging, serving

MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = "good fine lovely bad dull cold film soup song was is a the".split()
TEXTS = [f"the {thing} was {word}" for thing in ("film", "soup") for word in WORDS[:6]]
PAIRS = [(text, "up" if text.split()[-1] in WORDS[:3] else "down") for text in TEXTS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A Hugging Face folder with a vocab.txt."""
  place = tmp_path_factory.mktemp("encoder")
  pieces = [*MARKS, *WORDS]
  marks = {"first_id": 2, "last_id": 3, "mask_id": 4}
  sizes = {"emb_dim": 12, "num_heads": 3, "mlp_dim": 20, "num_layers": 2}
  config = BertConfig(len(pieces), positions=32, **marks, **sizes)
  (place / "pieces").mkdir()
  vocabulary = place / "pieces" / "vocab.txt"
  vocabulary.write_text("\n".join(pieces) + "\n")
  backbone = Bert(config)
  params = tools.weights(backbone, 1.0)
  bert_hugging.write(place / "model", backbone, params, vocabulary)
  return str(place / "model")


@pytest.fixture(scope="module")
def model(folder):
  return pt.load_model(folder)


@pytest.fixture(scope="module")
def prompt(model):
  settings = {"prompt_length": 3, "learning_rate": 0.1, "batch_size": 12}
  return pt.tune(model, PAIRS, output="label", steps=30, validation=PAIRS, **settings)


def test_saved_and_asked_by_the_verb(model, prompt, tmp_path):
  prompt.save(tmp_path / "prompt")
  again = pt.load_prompt(tmp_path / "prompt")
  found = pt.classify(model, again, TEXTS)
  wanted = pt.classify(model, prompt, TEXTS)
  assert found[0] == wanted[0]
  np.testing.assert_array_equal(found[1], wanted[1])
  (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
  asked = str(tmp_path / "texts.txt"), str(tmp_path / "answers.jsonl")
  infer.infer(*asked, prompt_dir=str(tmp_path / "prompt"))
  lines = (tmp_path / "answers.jsonl").read_text().splitlines()
  assert [json.loads(line)["prediction"] for line in lines] == wanted[0]


def test_served_as_it_answers_here(model, prompt, tmp_path):
  prompt.save(tmp_path / "prompt")
  export("stablehlo", str(tmp_path / "artifact"), str(tmp_path / "prompt"))
  served = serving.load(str(tmp_path / "artifact"))
  found, wanted = served.classify(TEXTS[:3]), pt.classify(model, prompt, TEXTS[:3])
  assert list(found[0]) == wanted[0]
  tools.close(found[1], wanted[1])

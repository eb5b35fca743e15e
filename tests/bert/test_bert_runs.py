"""An encoder from a folder to its answers: tuned and asked."""

import json

import bert_tools as tools
import jax
import numpy as np
import pytest

import prompt_tuning as pt
from prompt_tuning import answer, infer
from prompt_tuning.backbones.bert.backbone import Bert
from prompt_tuning.backbones.bert.config import BertConfig
from prompt_tuning.export import export
from prompt_tuning.interop import bert_hugging, packaged, serving

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
  return pt.tune(model, PAIRS, output="label", steps=60, validation=PAIRS, **settings)


def test_learns_from_pairs_alone(model, prompt):
  assert prompt.card["scores"]["accuracy"] >= 90
  found, scores = pt.classify(model, prompt, TEXTS)
  assert np.mean([a == b for a, (_, b) in zip(found, PAIRS, strict=True)]) >= 0.9
  np.testing.assert_allclose(np.exp(scores).sum(1), 1, atol=1e-5)
  assert prompt.card["layout"]["place"] == "after_first"
  assert pt.predict(model, prompt, TEXTS) == found


def test_without_an_output_a_head_answers(model):
  found = pt.tune(model, PAIRS, method="lora", steps=2, rank=2)
  assert found.head.classes == 2
  # The places of a decoder are left out of a sentence spread over both.
  held = sorted(found.trainable["prompt"])
  assert held == ["encoder_self_query_weight", "encoder_self_value_weight"]


@pytest.mark.parametrize(
  "output, targets, steps", [("labels", "ab", 3), ("number", None, 3)]
)
def test_other_heads(model, output, targets, steps):
  values = ["a|b", "a", "b"] if targets else ["0.5", "-1", "2"]
  pairs = [(text, values[i % 3]) for i, text in enumerate(TEXTS)]
  found = pt.tune(model, pairs, method="linear_probe", output=output, steps=steps)
  answers = pt.predict(model, found, TEXTS[:2])
  assert len(answers) == 2
  if output == "number":
    assert all(np.isfinite(float(one)) for one in answers)


@pytest.mark.parametrize(
  "ask, who",
  [
    (lambda model: pt.predict(model, None, ["a"]), "`OUTPUT` \\(Greedy\\)"),
    (lambda model: pt.classify(model, None, ["a"], ["x", "y"]), "\\(Choice\\)"),
    (lambda model: pt.score(model, None, [("a", "the")]), "`score`"),
    (lambda model: model.logits([[5]], [[6]]), "`logits`"),
  ],
)
def test_words_are_refused(model, ask, who):
  with pytest.raises(ValueError, match=who + ".* asks for words, but the backbone is"):
    ask(model)


def test_long_texts_are_cut_to_the_positions(model, prompt):
  long = " ".join(["good"] * 90)
  ready = answer.session(model.loaded, prompt)
  assert ready.limit == 32 - 3 - 1
  shorter = " ".join(["good"] * (ready.limit - 1))
  found = pt.classify(model, prompt, [long])[1]
  np.testing.assert_allclose(found, pt.classify(model, prompt, [shorter])[1], atol=1e-5)


def test_embeddings(model, prompt):
  found = model.embed(TEXTS[:3])
  assert found.shape == (3, 12) and found.dtype == np.float32
  alone = np.concatenate([model.embed([text]) for text in TEXTS[:3]])
  tools.close(alone, found)
  first = model.embed(TEXTS[:3], pool="first")
  assert np.abs(first - found).max() > 1e-3
  assert np.abs(model.embed(TEXTS[:3], prompt=prompt) - found).max() > 1e-3
  assert model.embed([]).shape == (0, 12)
  with pytest.raises(ValueError, match="gives \\['mean', 'first', 'pooler'\\]"):
    model.embed(TEXTS[:1], pool="last")
  with pytest.raises(ValueError, match="is of encoders"):
    pt.load_model("mini").embed(["a"])


def test_minilm_is_what_its_package_says():
  try:
    folder = packaged.find("minilm")
  except ValueError as error:
    pytest.skip(str(error))
  model = pt.load_model("minilm")
  assert sum(x.size for x in jax.tree.leaves(model.loaded.params)) == 22_713_216
  assert (folder / "tokenizer.json").is_file()
  assert model.loaded.vocabulary.encode("A fine film!") == [1037, 2986, 2143, 999]
  found = model.embed(["A fine film.", "The movie was great", "Stock prices fell"])
  unit = found / np.linalg.norm(found, axis=1, keepdims=True)
  assert unit[0] @ unit[1] > unit[0] @ unit[2]
  # Of transformers 5.24, in float32.
  tools.close(found[0, :5], [-0.2709, 0.0121, -0.0499, -0.1431, -0.1308], 1e-4)


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

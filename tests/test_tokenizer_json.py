"""A tokenizer.json gives the ids of Transformers, and a T5 with one works."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import gin
import numpy as np
import pytest

pytest.importorskip("tokenizers")

import tokenizer_tools  # noqa: E402

import prompt_tuning as pt  # noqa: E402
from prompt_tuning import export  # noqa: E402
from prompt_tuning.data import tokenizer_files, tokenizer_json, vocabularies  # noqa: E402
from prompt_tuning.engine import config  # noqa: E402
from prompt_tuning.interop import huggingface, savedmodel, serving  # noqa: E402
from prompt_tuning.interop.load import load  # noqa: E402

GOLDENS = pathlib.Path(__file__).parent / "goldens" / "tokenizer_ids.json"
PAIRS = [("a fine film", "good"), ("a dull film", "bad")] * 4


@pytest.fixture(scope="module")
def t5(tmp_path_factory, vocabulary_file):
  """A folder with the mini's pieces in a tokenizer.json, and one added token."""
  folder = tmp_path_factory.mktemp("t5")
  return tokenizer_tools.t5(folder, vocabulary_file, added=tokenizer_tools.ADDED)


@pytest.fixture(scope="module")
def folders(t5, tmp_path_factory):
  root = tmp_path_factory.mktemp("others")
  return {
    "t5": t5,
    "byte_level": tokenizer_tools.byte_level(root / "byte_level"),
    "word_piece": tokenizer_tools.word_piece(root / "word_piece"),
  }


@pytest.fixture(scope="module")
def saved(t5, tmp_path_factory, tiny_folder):
  """A T5 as current Transformers saves it: no spiece.model."""
  folder = tmp_path_factory.mktemp("saved") / "model"
  loaded = load(tiny_folder)
  huggingface.write(folder, loaded.backbone, loaded.params)
  for path in t5.iterdir():
    shutil.copy(path, folder)
  return folder


def of(folder):
  return vocabularies.from_file(str(folder / "tokenizer.json"))


def compare(ours, text, ids, decoded):
  assert vocabularies.encode(ours, text) == ids, text
  if ours.eos_id not in ids:
    shown = [i for i in ids if i not in ours.tokens.sentinels.values()]
    assert ours.decode(shown) == decoded, text


def test_ids_are_those_of_transformers(t5):
  ours = of(t5)
  for line in json.loads(GOLDENS.read_text()):
    *ids, end = line["ids"]
    assert end == ours.eos_id
    compare(ours, line["text"], ids, line["decoded"])
  assert ours.vocab_size == 8000 + 100 + 1 and ours.extra_ids == 100


@pytest.mark.parametrize("kind", ["t5", "byte_level", "word_piece"])
def test_ids_are_those_of_the_transformers_that_is_installed(kind, folders):
  transformers = pytest.importorskip("transformers")
  theirs = transformers.AutoTokenizer.from_pretrained(folders[kind])
  ours = of(folders[kind])
  assert ours.vocab_size == len(theirs)
  for text in tokenizer_tools.texts(400, seed=1):
    ids = theirs(text, add_special_tokens=False)["input_ids"]
    compare(ours, text, ids, theirs.decode(ids, skip_special_tokens=True))


def test_marks(folders):
  marks = {
    kind: (ours.pad_id, ours.bos_id, ours.eos_id, ours.unk_id, ours.extra_ids)
    for kind, ours in ((kind, of(folder)) for kind, folder in folders.items())
  }
  assert marks == {
    "t5": (0, None, 1, 2, 100),
    "byte_level": (None, None, 0, None, 0),
    # Of its post_processor and its own padding: no file lies beside it.
    "word_piece": (0, 2, 3, 1, 0),
  }


def test_nothing_is_added_cut_or_filled(folders):
  # The file asks for [CLS], [SEP], 4 tokens at the most and 8 at the least.
  ours = of(folders["word_piece"])
  ids = ours.encode("the quick brown fox jumps over the lazy dog.")
  assert len(ids) == 10 and ours.encode("fox") == ids[3:4]
  assert vocabularies.with_end(ours, "fox") == [*ids[3:4], 3]


def test_pads_are_dropped_and_a_first_token_is_not(folders):
  ours = of(folders["byte_level"])
  assert vocabularies.decode(ours, [*ours.encode("so"), 0, 5]) == "so"
  ids = [0, 524, 0, 41, 1259, 1, 7]
  assert vocabularies.decode(of(folders["t5"]), ids) == "lovely evening"


def test_bytes_are_given_back(folders):
  ours = of(folders["byte_level"])
  for text in tokenizer_tools.texts(50, seed=2):
    text = text.replace("<|endoftext|>", "")
    assert ours.decode(ours.encode(text)) == text


def test_sentinels_are_those_of_a_sentencepiece_file(t5, vocabulary_file):
  ours, pieces = of(t5), vocabularies.sentencepiece(vocabulary_file)
  # An added token stands above them.
  assert ours.first_sentinel == ours.vocab_size - 2
  for found in (ours, pieces):
    assert vocabularies.first_sentinel(found) == 8099
    for number in (0, 7, 99):
      text = f"good <extra_id_{number}> film <extra_id_5>"
      assert 8099 - number in found.encode(text)
      assert vocabularies.decode(found, found.encode(text)) == text
  assert ours.tokens.sentinels[99] == 8000


def test_no_sentinels_are_said(folders):
  with pytest.raises(ValueError, match="hold no sentinels <extra_id_0>"):
    vocabularies.first_sentinel(of(folders["word_piece"]))


def test_sentinels_that_count_up_are_none(t5, tmp_path):
  fields = json.loads((t5 / "tokenizer.json").read_text())
  pieces = fields["model"]["vocab"]
  pieces[8000:8100] = reversed(pieces[8000:8100])
  for token in fields["added_tokens"]:
    if 8000 <= token["id"] < 8100:
      token["id"] = 16099 - token["id"]
  (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
  ours = of(tmp_path)
  assert ours.encode("<extra_id_0>") == [8000] and ours.first_sentinel is None


def test_text_that_is_none(folders):
  for folder in folders.values():
    with pytest.raises(ValueError, match=r"tokenizer.json' cannot encode 'a \\ud800'"):
      of(folder).encode("a \ud800")


def test_a_vocabulary_of_seqio(t5, tmp_path):
  import tensorflow as tf

  ours = of(t5)
  theirs = vocabularies.for_seqio(ours)
  assert (theirs.vocab_size, theirs.pad_id, theirs.eos_id) == (8101, 0, 1)
  assert vocabularies.first_sentinel(theirs) == 8099
  texts = tokenizer_tools.texts(20, seed=3)
  found = tf.data.Dataset.from_tensor_slices(texts).map(theirs.encode_tf)
  for text, ids in zip(texts, found, strict=True):
    assert ids.numpy().tolist() == ours.encode(text) == theirs.encode(text)
    assert theirs.decode_tf(ids).numpy().decode() == ours.decode(ids.numpy())
  rows = tf.constant([[34, 180, 1, 0], [0, 0, 0, 0]])
  shown = [text.decode() for text in theirs.decode_tf(rows).numpy()]
  assert shown == [ours.decode([34, 180]), ""]
  copy = tmp_path / "copy"
  shutil.copytree(t5, copy)
  assert theirs == vocabularies.for_seqio(of(copy))
  (copy / "tokenizer.json").write_text((copy / "tokenizer.json").read_text() + " ")
  assert theirs != vocabularies.for_seqio(of(copy))


def test_a_t5_without_spiece_model(saved, t5, vocabulary_file, tmp_path):
  model = pt.load_model(str(saved))
  held = model.loaded.vocabulary
  assert isinstance(held, tokenizer_json.TokenizerJson)
  assert model.loaded.vocabulary_path == str(saved / "tokenizer.json")
  pieces = pt.load_model(str(saved), vocabulary=vocabulary_file)
  assert pieces.loaded.vocabulary_path == vocabulary_file
  # The same ids, so the same prompt and the same answers.
  asked = {"steps": 1, "prompt_length": 20, "batch_size": 4}
  prompt = pt.tune(model, PAIRS, **asked)
  texts = ["a fine film", "what <extra_id_0> film?"]
  found = pt.classify(model, prompt, texts, ["good", "bad"])
  wanted = pt.classify(pieces, prompt, texts, ["good", "bad"])
  assert found[0] == wanted[0]
  np.testing.assert_array_equal(found[1], wanted[1])
  answers = pt.predict(pieces, prompt, texts, 4)
  export_and_serve(prompt, saved, texts, answers, tmp_path)
  assert savedmodel.tokeniser(held) is None


def export_and_serve(prompt, saved, texts, answers, tmp_path):
  prompt.save(tmp_path / "prompt")
  flags = [f"--prompt={tmp_path / 'prompt'}", f"--output={tmp_path / 'artifact'}"]
  flags += [f"--checkpoint={saved}", "--steps=4", "--platforms=cpu"]
  export.main(["--to=stablehlo", *flags])
  held = sorted(path.name for path in (tmp_path / "artifact").iterdir())
  assert "tokenizer.json" in held and "spiece.model" not in held
  served = serving.load(tmp_path / "artifact")
  assert served.predict(texts) == answers


def test_an_export_takes_the_file_along(saved, tmp_path):
  (tmp_path / "in").mkdir()
  for path in saved.iterdir():
    shutil.copy(path, tmp_path / "in")
  said = {"eos_token": {"content": "</s>"}, "auto_map": {"AutoTokenizer": "evil.T"}}
  (tmp_path / "in" / "tokenizer_config.json").write_text(json.dumps(said))
  out = tmp_path / "out"
  flags = [f"--checkpoint={tmp_path / 'in'}", f"--output={out}"]
  export.main(["--to=huggingface", *flags])
  name = "tokenizer.json"
  assert (out / name).read_bytes() == (saved / name).read_bytes()
  assert json.loads((out / "tokenizer_config.json").read_text()) == {
    "eos_token": {"content": "</s>"}
  }
  assert not (out / "spiece.model").exists()
  assert load(str(out)).vocabulary.encode("<cause>") == [8100]


def test_vocabulary_of_load_model(saved, t5, tiny_folder, vocabulary_file, tmp_path):
  given = [str(t5), t5 / "tokenizer.json", of(t5)]
  for value in given:
    held = pt.load_model(tiny_folder, vocabulary=value).loaded.vocabulary
    assert held.encode("<cause>") == [8100]
  with pytest.raises(ValueError, match="384 ids, but the backbone"):
    pt.load_model(tiny_folder, vocabulary="bytes")
  (tmp_path / "empty").mkdir()
  wrong = {
    "/none.json": "`vocabulary` is '/none.json', which does not exist. Give the path",
    str(tmp_path / "empty"): "which holds no vocabulary. Give",
    5: "`vocabulary` must be the path of a spiece.model or a tokenizer.json, 'bytes'",
  }
  for value, words in wrong.items():
    with pytest.raises(ValueError, match=words):
      pt.load_model(tiny_folder, vocabulary=value)
  with pytest.raises(ValueError, match="`VOCABULARY` is '/none', which does not exist"):
    vocabularies.from_file("/none")
  shutil.copytree(saved, tmp_path / "bare")
  (tmp_path / "bare" / "tokenizer.json").unlink()
  with pytest.raises(ValueError, match="no tokenizer.json; give the path of one"):
    pt.load_model(str(tmp_path / "bare"))
  held = pt.load_model(str(tmp_path / "bare"), vocabulary=vocabulary_file)
  assert held.loaded.vocabulary.vocab_size == 8100


@pytest.mark.parametrize("name", ["tokenizer.json", "spiece.model"])
def test_a_file_bound_in_gin(name, t5, vocabulary_file):
  path = vocabulary_file if name == "spiece.model" else str(t5 / name)
  gin.clear_config()
  try:
    gin.parse_config(
      [
        "from __gin__ import dynamic_registration",
        "from prompt_tuning.data import vocabularies",
        "VOCABULARY = @vocabularies.from_file()",
        f"vocabularies.from_file.path = {path!r}",
      ]
    )
    held = config.macro("VOCABULARY")
  finally:
    gin.clear_config()
  kind = {"tokenizer.json": tokenizer_json.TokenizerJson}
  assert isinstance(held, kind.get(name, vocabularies.SentencePiece))
  assert held.path == path and held.encode("lovely evening") == [524, 41, 1259]


def test_other_marks_are_no_t5s(saved, tmp_path):
  folder = shutil.copytree(saved, tmp_path / "model")
  config = {"eos_token": "<cause>", "pad_token": "<pad>"}
  (folder / "tokenizer_config.json").write_text(json.dumps(config))
  with pytest.raises(ValueError, match="pads with the id 0 and ends a text with 8100"):
    load(str(folder))


def test_added_tokens_beside_a_sentencepiece_file(saved, vocabulary_file, tmp_path):
  folder = shutil.copytree(saved, tmp_path / "model")
  shutil.copy(vocabulary_file, folder / "spiece.model")
  held = load(str(folder)).vocabulary
  assert held.encode("<cause>") == [8100] and held.vocab_size == 8101
  # As releases with a slow tokenizer wrote it: no tokenizer.json.
  (folder / "tokenizer.json").unlink()
  (folder / "added_tokens.json").write_text('{"<extra_id_0>": 8099, "<cause>": 8100}')
  with pytest.raises(ValueError, match=r"tokens were added \('<cause>'\), which it"):
    load(str(folder))
  (folder / "added_tokens.json").write_text('{"<extra_id_0>": 8099, "</s>": 1}')
  assert load(str(folder)).vocabulary.vocab_size == 8100


def test_files_of_two_tokenizers(t5, tmp_path):
  folder = shutil.copytree(t5, tmp_path / "model")
  (folder / "added_tokens.json").write_text('{"<other>": 8101}')
  with pytest.raises(ValueError, match="name the added token '<other>', which it does"):
    of(folder)
  (folder / "added_tokens.json").unlink()
  (folder / "special_tokens_map.json").write_text('{"bos_token": "<s>"}')
  with pytest.raises(ValueError, match="says bos_token '<s>', which it does not hold"):
    of(folder)


def bad_charsmap(fields):
  fields["normalizer"]["precompiled_charsmap"] = "0NTU1AAA"


def no_end(fields):
  fields["post_processor"] = None


def no_model(fields):
  fields["model"] = []


def pieces_of_numbers(fields):
  fields["model"]["vocab"] = [[1, 2]]


@pytest.mark.parametrize(
  "change, words",
  [
    (bad_charsmap, "precompiled_charsmap of 6 bytes that claims 3570717904"),
    (no_end, "Nothing says which token of .* ends a text"),
    (no_model, "it holds no object `model`"),
    (pieces_of_numbers, "is no file that tokenizers .* reads"),
  ],
)
def test_wrong_fields(change, words, t5, tmp_path):
  fields = json.loads((t5 / "tokenizer.json").read_text())
  change(fields)
  (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
  with pytest.raises(ValueError, match=words):
    of(tmp_path)


def test_damaged_files(saved, tmp_path):
  folder = shutil.copytree(saved, tmp_path / "model")
  place = folder / "tokenizer.json"
  whole = place.read_bytes()
  nested = b'{"a":' * 100_000
  for data in (b"", whole[:-40], b"[]", b"\xff" + whole, nested, b"[" * 10**6):
    place.write_bytes(data)
    with pytest.raises(ValueError, match=r"model/tokenizer.json'") as error:
      load(str(folder))
    assert len(str(error.value)) < 2000
  with place.open("wb") as file:
    file.truncate(1 << 40)
  with pytest.raises(ValueError, match="tokenizer.json' cannot be read: it is larger"):
    load(str(folder))
  place.unlink()
  os.mkfifo(place)
  with pytest.raises(ValueError, match="holds no spiece.model and no tokenizer.json"):
    load(str(folder))
  with pytest.raises(ValueError, match="`vocabulary` is .*, which is no regular file"):
    pt.load_model(str(folder), vocabulary=place)


def test_a_file_that_took_the_place_of_another(t5, tmp_path):
  folder = shutil.copytree(t5, tmp_path / "model")
  assert of(folder).encode("<cause>") == [8100]
  place = folder / "tokenizer.json"
  place.write_text(place.read_text().replace("<cause>", "<other>"))
  assert of(folder).encode("<cause>") != [8100]


def test_no_tensorflow_and_no_tokenizers_are_imported_unasked(t5):
  program = f"""
import sys
import prompt_tuning as pt
from prompt_tuning.data import vocabularies
pt.load_model("mini").loaded.vocabulary.encode("a film")
assert "tokenizers" not in sys.modules
vocabularies.from_file({str(t5)!r}).encode("a film")
assert "tensorflow" not in sys.modules and "seqio" not in sys.modules
"""
  subprocess.run([sys.executable, "-c", program], check=True, timeout=300)


def test_a_missing_library_is_named(t5, monkeypatch):
  monkeypatch.setitem(sys.modules, "tokenizers", None)
  tokenizer_files._read.cache_clear()
  with pytest.raises(ValueError, match="read with the package `tokenizers`"):
    of(t5)

"""Artifacts that answer without the library, and SavedModels: the same answers."""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import method_tools
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy
from serving_tools import TOLERANCE, made, records, write

import prompt_tuning as pt
from prompt_tuning import answer, export
from prompt_tuning.data.features import PLACES, Layout, pad
from prompt_tuning.interop import (
  savedmodel_words,
  serving,
  serving_card,
  serving_files,
  serving_programs,
  serving_settings,
)
from prompt_tuning.interop.lazy import UnreadableError
from prompt_tuning.interop.load import load
from prompt_tuning.outputs.text import Beam

LABELS = ["negative", "positive"]
TEXTS = [
  "a fine film",
  "dull",
  "",
  "it was, all in all, a lovely evening with good food and better talk",
  "so what",
]


@dataclasses.dataclass
class Written:
  """A prompt's folder, its artifact, and what was loaded from that."""

  prompt: pathlib.Path
  folder: pathlib.Path
  served: serving.Served


@pytest.fixture(scope="module")
def plain(tmp_path_factory, tiny_folder):
  """A table: greedy, on three platforms, with the labels of its task."""
  folder = tmp_path_factory.mktemp("plain")
  prompt = made(tiny_folder, folder, "prompt_tuning", labels=LABELS)
  out = write("stablehlo", prompt, folder / "artifact", "--steps=6")
  return Written(prompt, out, serving.load(out))


@pytest.fixture(scope="module")
def conditioned(tmp_path_factory, tiny_folder):
  """A prompt that reads its input, at the input's end: beams, one platform."""
  folder = tmp_path_factory.mktemp("conditioned")
  prompt = made(tiny_folder, folder, "ipt_mlp_concat", "end")
  flags = "--steps=4", "--beams=2", "--platforms=cpu", "--labels", *LABELS
  out = write("stablehlo", prompt, folder / "artifact", *flags)
  return Written(prompt, out, serving.load(out))


@pytest.fixture(scope="module")
def wanted_scores(conditioned, tiny_folder):
  """(labels, scores) of the library for `conditioned`."""
  prompt = pt.load_prompt(conditioned.prompt)
  return pt.classify(pt.load_model(tiny_folder), prompt, TEXTS, LABELS)


@pytest.fixture(scope="module")
def wanted_records(conditioned, tiny_folder):
  """Records of the library for `conditioned`, with beams."""
  ready = answer.session(load(tiny_folder), pt.load_prompt(conditioned.prompt))
  return records(ready, TEXTS, None, Beam(4, 2))


def test_a_prompt_that_reads_its_input(conditioned, wanted_scores):
  labels, scores_BK = conditioned.served.classify(TEXTS)
  assert labels == wanted_scores[0]
  np.testing.assert_allclose(scores_BK, wanted_scores[1], rtol=0, atol=TOLERANCE)
  assert np.ptp(scores_BK, axis=0).min() > 100 * TOLERANCE, "texts make a difference"
  # A mixed batch is its rows one by one.
  for text, row_K in zip(TEXTS[1:3], scores_BK[1:3], strict=True):
    alone = conditioned.served.classify([text])[1]
    np.testing.assert_allclose(alone[0], row_K, rtol=0, atol=TOLERANCE)
  assert conditioned.served.classify([])[1].shape == (0, 2)


def test_beams(conditioned, wanted_records):
  assert conditioned.served.predict(TEXTS) == [x["prediction"] for x in wanted_records]
  assert conditioned.served.predict([]) == []


def test_what_an_artifact_says_of_itself(plain, conditioned, tiny_folder):
  card = json.loads((plain.folder / "card.json").read_text())
  assert card["platforms"] == ["cpu", "cuda", "tpu"] and card["labels"] == LABELS
  assert card["arguments"] == {"inputs": {"dtype": "int32", "shape": ["b", "t"]}}
  assert card["programs"]["generate"]["ids"] == {"dtype": "int32", "shape": ["b", 6]}
  assert card["programs"]["choose"]["scores"]["shape"] == ["b", 2]
  assert card["backbone"]["fingerprint"] == load(tiny_folder).fingerprint
  assert card["prompt"]["method"] == "prompt_tuning" and card["jax"] == jax.__version__
  names = {"card.json", "weights.safetensors", "spiece.model"}
  names |= {"generate.jax_export", "choose.jax_export"}
  assert {path.name for path in plain.folder.iterdir()} == names
  data = (plain.folder / "choose.jax_export").read_bytes()
  assert jax.export.deserialize(bytearray(data)).platforms == ("cpu", "cuda", "tpu")
  # Neither weights nor the paths of source files are in a program.
  assert len(data) < 100_000 and b".py" not in data
  assert card["weights"]["backbone/token_embedder/embedding"]["shape"] == [8192, 16]
  assert conditioned.served.card["decoding"] == {
    "loop": "beam_search",
    "steps": 4,
    "beams": 2,
    "alpha": 0.6,
    "length_penalty": "brevity",
  }


LOADER = """
import json, sys
class Blocked:
  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] in {"flax", "tensorflow", "seqio", "gin", "optax", "orbax",
                              "clu", "jaxtyping", "safetensors", "etils"}:
      raise ImportError(name)
sys.meta_path.insert(0, Blocked())
from prompt_tuning.interop import serving
print(json.dumps(serving.load(sys.argv[1]).predict(sys.argv[2:])))
"""


def test_loading_takes_little_more_than_jax(plain, root, tiny_folder):
  run = subprocess.run(
    [sys.executable, "-c", LOADER, str(plain.folder), *TEXTS],
    env={**os.environ, "PYTHONPATH": str(root)},
    capture_output=True,
    text=True,
  )
  assert run.returncode == 0, run.stderr
  model, prompt = pt.load_model(tiny_folder), pt.load_prompt(plain.prompt)
  assert json.loads(run.stdout) == pt.predict(model, prompt, TEXTS, steps=6)


@pytest.mark.parametrize("place", ["front", "after_first", "end", "mark"])
def test_positions_are_reserved_as_the_data_pipeline_does(place):
  examples = [([5, 6, 7, 1], 2), ([4, 1], 0), ([1], 3), ([8, 9, 7, 3, 1], 9)]
  layout = Layout(6, 1, encoder_prompt=3, place=place)
  rows = []
  for ids, mark in examples:
    row = layout.convert({"inputs": ids, "targets": [1], "mark": mark})
    rows.append(pad(row, layout.lengths))
  inputs = np.zeros((4, 6), np.int32)
  for row, (ids, _) in zip(inputs, examples, strict=True):
    row[: len(ids)] = ids
  mark_B = jnp.array([mark for _, mark in examples])
  form, inputs = layout.form, jnp.asarray(inputs)
  starts_B = form.starts(inputs, place, mark_B, jnp)
  read = form.read(inputs, {"encoder": 3}, starts_B, jnp)
  for name in ("inputs", "prompt_index"):
    np.testing.assert_array_equal(read[name], [row[name] for row in rows])


@pytest.mark.parametrize(
  "method", ["ipt_rnn", "prefix_tuning", "prefix_tuning_decoder", "s_idpg_phm"]
)
def test_prompts_of_every_kind_leave_rows_and_lengths_free(method, tmp_path):
  case = method_tools.case(method, tmp_path)
  held = types.SimpleNamespace(encode=method_tools.encode)
  settings = serving_settings.Settings(labels=LABELS, steps=3)
  servable = serving_programs.Servable(
    case.model, case.params, held, settings, {"place": "front"}
  )
  for name, program in servable.programs.items():
    found = jax.eval_shape(program, servable.weights, servable.symbols())
    b = next(iter(found.values())).shape[0]
    assert str(b) == "b", name


def test_marks_and_external_vectors(tmp_path, tiny_folder):
  prompt = made(tiny_folder, tmp_path, "s_idpg_phm_external", "mark", LABELS)
  out = write("stablehlo", prompt, tmp_path / "out", "--steps=2", "--platforms=cpu")
  served = serving.load(out)
  assert list(served.card["arguments"]) == ["external", "inputs", "mark"]
  vectors = np.random.default_rng(0).normal(size=(2, 12)).astype(np.float32)
  texts = ["a <prompt> film", "a film <prompt>"]
  scores_BK = served.classify(texts, external=vectors)[1]
  swapped_BK = served.classify(texts, external=vectors[::-1])[1]
  assert np.abs(scores_BK - swapped_BK).min() > 100 * TOLERANCE
  left_K, right_K = served.classify(texts, external=vectors[[0, 0]])[1]
  assert np.abs(left_K - right_K).min() > 100 * TOLERANCE, "only the mark differs"
  for words, arguments in {
    "holds no <prompt>": (["a film"], vectors[:1]),
    "one row for each of the 2 texts": (texts, vectors[:1]),
    r"`external` must be float32 \['b', 12\]": (texts, vectors[:, :3]),
    "takes the features": (texts, None),
  }.items():
    with pytest.raises(ValueError, match=words):
      served.classify(*arguments)


def damage(folder, name, change):
  path = folder / name
  path.write_bytes(change(path.read_bytes()))


def relabel(folder, **fields):
  card = json.loads((folder / "card.json").read_text())
  card |= fields
  card["digest"] = serving_card.digest(card)
  (folder / "card.json").write_text(json.dumps(card))


def resign(folder, **changes):
  """Other contents of files (None takes one away), and a card that agrees."""
  files = json.loads((folder / "card.json").read_text())["files"]
  for name, data in changes.items():
    name = name.replace("__", ".")
    (folder / name).write_bytes(data)
    files[name] = hashlib.sha256(data).hexdigest()
  relabel(folder, files=files)


BAD = {
  "is no serving artifact": lambda f: (f / "card.json").unlink(),
  "card.json' cannot be read": lambda f: damage(f, "card.json", lambda b: b[:90]),
  "damaged or was edited": lambda f: damage(
    f, "card.json", lambda b: b.replace(b"negative", b"negatiwe", 1)
  ),
  "damaged or of another": lambda f: damage(
    f, "weights.safetensors", lambda b: b[:-1] + bytes([b[-1] ^ 1])
  ),
  "lacks generate.jax_export": lambda f: (f / "generate.jax_export").unlink(),
  "this version reads": lambda f: relabel(f, format="prompt_tuning/serving/9"),
  r"made for \['tpu'\], but jax runs on 'cpu'": lambda f: relabel(f, platforms=["tpu"]),
  "lacks vocabulary.file": lambda f: relabel(f, vocabulary={"kind": "sentencepiece"}),
  "vocabulary.kind is 'x'": lambda f: relabel(f, vocabulary={"kind": "x"}),
  "lacks files.weights.safetensors": lambda f: relabel(f, files={}),
  "files.weights.safetensors is 3": lambda f: relabel(
    f, files={"weights.safetensors": 3}
  ),
  "names '../../etc/passwd', which is no name": lambda f: relabel(
    f, files={**files_of(f), "../../etc/passwd": "0"}
  ),
  "platforms is None; it must be a list": lambda f: relabel(f, platforms=None),
  "platforms is 'cpu'; it must be a list": lambda f: relabel(f, platforms="cpu"),
  "arguments is .*must be an object": lambda f: relabel(f, arguments=[]),
  r"arguments are \['x'\]; known are": lambda f: relabel(f, arguments={"x": {}}),
  "lacks arguments.inputs.dtype": lambda f: relabel(f, arguments={"inputs": {}}),
  "arguments.inputs.shape is": lambda f: relabel(
    f, arguments={"inputs": {"dtype": "int32", "shape": ["b", 7]}}
  ),
  "place is 'nowhere'; it must be one of": lambda f: relabel(f, place="nowhere"),
  "says the place 'mark', but": lambda f: relabel(f, place="mark"),
  r"programs are \['../../other/choose'": lambda f: relabel(
    f, programs={"../../other/choose": {}}
  ),
  "but the labels None": lambda f: relabel(f, labels=None),
  "labels is 'good'; it must be a list": lambda f: relabel(f, labels="good"),
  "programs.choose.scores.shape is": lambda f: relabel(f, labels=["a", "b", "c"]),
  "lacks reads.ids": lambda f: relabel(f, reads={}),
  "reads.template is": lambda f: relabel(
    f, reads={"ids": 9, "truncate": False, "template": [["text"]]}
  ),
  "reads.inputs is inf|which is not finite": lambda f: relabel(
    f, reads={"ids": 9, "truncate": True, "inputs": float("inf")}
  ),
  "nested deeper than": lambda f: relabel(f, place=nested(90)),
  "another program than card.json describes: its results": lambda f: resign(
    f, choose__jax_export=(f / "generate.jax_export").read_bytes()
  ),
  "is no SentencePiece model": lambda f: resign(f, spiece__model=b"x" * 50),
  "holds NaN or infinite": lambda f: resign(
    f, weights__safetensors=spoiled(f, lambda x: x * np.nan)
  ),
  "does not hold what card.json says": lambda f: resign(
    f, weights__safetensors=spoiled(f, lambda x: x.astype(np.float16))
  ),
  "cannot be read by jax": lambda f: resign(f, generate__jax_export=b"x" * 40),
}


def files_of(folder):
  return json.loads((folder / "card.json").read_text())["files"]


def nested(depth):
  return [nested(depth - 1)] if depth else []


def spoiled(folder, change):
  """The file of weights with one of them changed."""
  held = safetensors_numpy.load_file(folder / "weights.safetensors")
  name = sorted(held)[-1]
  return safetensors_numpy.save({**held, name: change(held[name])})


@pytest.mark.parametrize("words", BAD)
def test_bad_artifacts(plain, tmp_path, words):
  for path in plain.folder.iterdir():
    (tmp_path / path.name).write_bytes(path.read_bytes())
  BAD[words](tmp_path)
  with pytest.raises(ValueError, match=words):
    serving.load(tmp_path)


@pytest.mark.parametrize(
  ("make", "words"),
  [
    (os.mkfifo, "is a pipe, a socket or a device"),
    (pathlib.Path.mkdir, "is a folder"),
    (lambda path: path.symlink_to("/dev/zero"), "is a pipe, a socket or a device"),
    (lambda path: path.symlink_to("/etc/hostname"), "is a link that leaves its folder"),
  ],
)
@pytest.mark.parametrize("name", ["card.json", "choose.jax_export"])
def test_what_is_no_file_of_the_artifact_is_not_opened(
  plain, tmp_path, name, make, words
):
  for path in plain.folder.iterdir():
    (tmp_path / path.name).write_bytes(path.read_bytes())
  (tmp_path / name).unlink()
  make(tmp_path / name)
  with pytest.raises(UnreadableError, match=f"{name}' {words}"):
    serving.load(tmp_path)


def test_the_places_of_a_card_are_those_of_the_data():
  assert serving_card.PLACES == PLACES


def test_bad_features(plain):
  served = plain.served
  for words, features in {
    "takes the features": {"ids": np.ones((1, 2), int)},
    "must be int32": {"inputs": np.ones((1, 2), np.float32)},
    r"got int64 \[2\]": {"inputs": np.ones(2, int)},
    r"got int64 \[0, 2\]": {"inputs": np.ones((0, 2), int)},
  }.items():
    with pytest.raises(ValueError, match=words):
      served.run("generate", **features)
  with pytest.raises(ValueError, match=r"no program 'x'; it has \['choose', 'gen"):
    served.run("x")
  with pytest.raises(ValueError, match="must be a list of texts"):
    served.predict("a film")


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    (["--platforms=cpu,metal"], "some of .*got .'cpu', 'metal'"),
    (["--steps=0"], "at least 1"),
    (["--beams=0"], "at least 1"),
    (["--labels", "good", "good"], "twice"),
    (["--checkpoint=mini"], "width"),
  ],
)
def test_bad_flags(plain, tmp_path, capsys, flags, words):
  out = tmp_path / "out"
  out.mkdir()
  (out / "mine").write_text("kept")
  with pytest.raises(SystemExit):
    write("stablehlo", plain.prompt, out, *flags)
  error = capsys.readouterr().err
  assert error.startswith("error: ") and re.search(words, error)
  assert [path.name for path in tmp_path.iterdir()] == ["out"]
  assert [path.name for path in out.iterdir()] == ["mine"]


def test_what_makes_no_sense(plain, tmp_path):
  with pytest.raises(ValueError, match="`prompt` is missing"):
    export.export("stablehlo", str(tmp_path / "x"))
  with pytest.raises(ValueError, match=r"\['steps'\] belong to"):
    export.export("numpy", str(tmp_path / "x"), str(plain.prompt), steps=3)
  assert not list(tmp_path.iterdir())


def test_a_folder_that_exists_keeps_what_it_holds(tmp_path, tiny_folder):
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "old").write_text("x")
  prompt = made(tiny_folder, tmp_path, "prompt_tuning")
  flags = "--steps=2", "--platforms=cpu", "--dtype=bfloat16"
  out = write("stablehlo", prompt, tmp_path / "out", *flags)
  names = {"card.json", "generate.jax_export", "spiece.model", "weights.safetensors"}
  assert {path.name for path in out.iterdir()} == names | {"old"}
  served = serving.load(out)
  assert served.card["backbone"]["activations"] == "bfloat16"
  with pytest.raises(ValueError, match="Export with labels"):
    served.classify(["x"])


def test_a_saved_model_answers_the_same(
  conditioned, wanted_scores, wanted_records, tmp_path
):
  import tensorflow as tf

  pytest.importorskip("tensorflow_text")
  flags = "--steps=4", "--beams=2", "--platforms=cpu,tpu", "--labels", *LABELS
  out = write("savedmodel", conditioned.prompt, tmp_path / "model", *flags)
  said = json.loads((out / "card.json").read_text())
  assert set(said["signatures"]) == {"generate", "choose", "predict", "classify"}
  assert said["signatures"]["predict"]["arguments"]["text"]["dtype"] == "string"
  assert said["signatures"]["generate"]["results"]["ids"]["shape"] == [None, 2, 4]
  assert said["tokenizer"].startswith("inside") and said["place"] == "end"
  assert said["backbone"] == conditioned.served.card["backbone"]
  assert said["serving_default"] == "classify"
  loaded = tf.saved_model.load(str(out)).signatures
  found = loaded["serving_default"](text=tf.constant(TEXTS))
  labels, scores_BK = wanted_scores
  assert [one.decode() for one in found["prediction"].numpy()] == labels
  np.testing.assert_allclose(found["scores"], scores_BK, rtol=0, atol=TOLERANCE)
  # Another number of rows, and of positions.
  found = loaded["predict"](text=tf.constant(TEXTS[:2]))
  for i, record in enumerate(wanted_records[:2]):
    assert found["prediction"].numpy()[i].decode() == record["prediction"]
    log_probability = float(found["log_probability"][i])
    assert log_probability == pytest.approx(record["log_probability"], abs=TOLERANCE)


def test_a_saved_model_without_tensorflow_text(plain, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "tensorflow_text", None)
  flags = "--steps=2", "--platforms=cpu"
  out = write("savedmodel", plain.prompt, tmp_path / "model", *flags)
  card = json.loads((out / "card.json").read_text())
  assert set(card["signatures"]) == {"generate", "choose"}
  assert card["signatures"]["choose"]["arguments"] == {
    "inputs": {"dtype": "int32", "shape": [None, None]}
  }
  assert card["tokenizer"].startswith("outside: ids in")
  assert (out / "spiece.model").is_file()


def test_bytes_in_a_graph_are_bytes():
  import tensorflow as tf

  from prompt_tuning.data import vocabularies

  held = vocabularies.byte()
  words = savedmodel_words.tokeniser(held)
  texts = ["déjà vu", "", "a b"]
  ids = words.encode(tf.constant(texts)).to_list()
  assert ids == [held.encode(text) for text in texts]
  pieces = serving_files.read_vocabulary(pathlib.Path(), {"kind": "bytes"})
  assert [list(pieces.encode(text)) for text in texts] == ids
  odd = [[200, 300, 100], [2, 99, 98], []]
  found = [one.decode() for one in words.decode(tf.ragged.constant(odd)).numpy()]
  wanted = [vocabularies.decode(held, row) for row in odd]
  assert found == wanted == [pieces.decode(row) for row in odd]


def test_long_texts_stand_alone(plain, monkeypatch):
  """One long text among many makes no other row long."""
  monkeypatch.setattr(serving.lengths, "USUAL", 16)
  texts = [f"film {i}" for i in range(70)]
  texts[30] = "a long film " * 30
  shapes, run = [], serving.Served.run

  def seen(served, program, **features):
    shapes.append(features["inputs"].shape)
    return run(served, program, **features)

  monkeypatch.setattr(serving.Served, "run", seen)
  labels, scores_BK = plain.served.classify(iter(texts))
  assert sum(rows for rows, width in shapes if width > 16) == 1
  assert max(rows for rows, _ in shapes) <= serving.MOST
  for i in (0, 30, 69):
    label, scores = plain.served.classify([texts[i]])
    np.testing.assert_allclose(scores[0], scores_BK[i], atol=TOLERANCE)
    assert label == [labels[i]]


def test_texts_are_checked_as_python_checks_them(plain):
  for wrong, words in (
    (["a", "b\ud800"], r"`texts\[1\]` is 'b.ud800', which has half of a surrogate"),
    (["a\0"], r"`texts\[0\]` is .* the character NUL"),
    (["a <prompt> b <prompt>"], "holds <prompt> 2 times"),
    (b"a", "`texts` must be a list of texts, got b'a'"),
    ({"a"}, "`texts` must be a list of texts"),
    (5, "`texts` must be a list of texts"),
  ):
    with pytest.raises(ValueError, match=words):
      plain.served.predict(wrong)
  assert plain.served.predict(iter([])) == []

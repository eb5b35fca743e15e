"""Prompts of other libraries, read and written."""

import json
import os
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

import prompt_tuning as pt
from prompt_tuning import export
from prompt_tuning.core.model import PromptedModel, features
from prompt_tuning.engine import product
from prompt_tuning.interop import peft, prompts, source
from prompt_tuning.interop.t5_family import open_source as open_foreign

GOLDENS = pathlib.Path(__file__).parent / "goldens"
ADAPTER = GOLDENS / "peft" / "prompt_tuning"
SHARED = pathlib.Path(__file__).parent.parent.parent / "shared" / "testdata"
upstream = pytest.mark.skipif(not SHARED.is_dir(), reason="upstream's prompts")
VECTORS = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)


@pytest.fixture
def saved(tmp_path):
  """A product of ours, in its folder."""
  np.save(tmp_path / "x.npy", VECTORS)
  prompts.load(tmp_path / "x.npy").save(tmp_path / "ours")
  return tmp_path / "ours"


@pytest.mark.parametrize("name", ["prompt_tuning", "p_tuning", "multitask"])
def test_an_adapter_of_peft_gives_its_logits(name):
  made = pt.load_prompt(ADAPTER.parent / name, task=1 if name == "multitask" else None)
  folder = GOLDENS / "hugging_face"
  backbone, params = source.load(open_foreign(folder / "t5_1_0"))
  stored = np.load(folder / "logits.npz")
  batch = features(stored["inputs"], stored["targets"], made.module.lengths)
  logits = PromptedModel(backbone, made.module).logits(made.params(params), batch)
  # Both count the decoder's own virtual positions, where there are some.
  wanted = np.load(GOLDENS / "peft" / "logits.npz")[name]
  np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layers", [2, 3])
def test_a_prefix_of_peft_gives_its_logits(layers, tmp_path):
  made = pt.load_prompt(ADAPTER.parent / f"prefix_{layers}")
  backbone, params = source.load(open_foreign(ADAPTER.parent / f"model_{layers}"))
  stored = np.load(GOLDENS / "hugging_face" / "logits.npz")
  batch = features(stored["inputs"], stored["targets"], {})
  wanted = np.load(GOLDENS / "peft" / "logits.npz")[f"prefix_{layers}"]
  made.save(tmp_path / "ours")
  out = tmp_path / "adapter"
  export.main(["--to=peft", f"--prompt={tmp_path / 'ours'}", f"--output={out}"])
  for one in (made, pt.load_prompt(out)):
    logits = PromptedModel(backbone, one.module).logits(one.params(params), batch)
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-5)
  theirs = json.loads((ADAPTER.parent / f"prefix_{layers}" / peft.CONFIG).read_text())
  ours = json.loads((out / peft.CONFIG).read_text())
  differ = {"base_model_name_or_path"}
  assert {k for k in ours if ours[k] != theirs[k]} == differ


def test_a_prefix_that_peft_would_mix_up_is_refused(tmp_path):
  table = np.random.default_rng(0).normal(size=(4, 3, 8)).astype(np.float32)
  with pytest.raises(ValueError, match=r"layers i and i \+ 1 .* the same prefix"):
    peft.write_prefix(tmp_path / "out", table, 2)
  assert not (tmp_path / "out").exists()
  peft.write_prefix(tmp_path / "out", table[[0, 1, 0, 1]], 2)
  np.testing.assert_array_equal(
    peft.read(tmp_path / "out").decoder_GPJ, table[[0, 1] * 2]
  )


def test_an_adapter_for_peft_is_what_peft_writes(saved, tmp_path):
  export.main(["--to=peft", f"--prompt={saved}", f"--output={tmp_path / 'adapter'}"])
  ours, theirs = (
    json.loads((folder / "adapter_config.json").read_text())
    for folder in (tmp_path / "adapter", ADAPTER)
  )
  assert set(ours) <= set(theirs)
  differ = {"base_model_name_or_path", "num_transformer_submodules"}
  assert {k for k in ours if ours[k] != theirs[k]} == differ
  path = "adapter_model.safetensors"
  tensors = safetensors_numpy.load_file(tmp_path / "adapter" / path)
  assert set(tensors) == set(safetensors_numpy.load_file(ADAPTER / path))
  np.testing.assert_array_equal(tensors["prompt_embeddings"], VECTORS)
  np.testing.assert_array_equal(
    prompts.fold(pt.load_prompt(tmp_path / "adapter")), VECTORS
  )


def test_numpy_and_ours_round_trip(saved, tmp_path):
  out = tmp_path / "deep" / "encoder.prompt.prompt.prompt"
  export.main(["--to=numpy", f"--prompt={saved}", f"--output={out}"])
  for path in (saved, out):
    np.testing.assert_array_equal(prompts.fold(pt.load_prompt(path)), VECTORS)
  assert [p.name for p in out.parent.iterdir()] == [out.name]


def test_t5x_checkpoint_with_a_prompt(tmp_path, tiny_folder):
  np.save(tmp_path / "x.npy", np.ones((3, 16), np.float32))
  export.main(
    [
      "--to=t5x",
      f"--prompt={tmp_path / 'x.npy'}",
      f"--checkpoint={tiny_folder}",
      f"--output={tmp_path / 'model'}",
    ]
  )
  found = open_foreign(tmp_path / "model")
  assert list(found.prompts) == [prompts.BRANCH] and found.step == 0
  np.testing.assert_array_equal(prompts.fold(pt.load_prompt(tmp_path / "model")), 1.0)


def test_a_backbone_for_hugging_face(tmp_path, tiny_folder):
  out = tmp_path / "model"
  export.main(["--to=huggingface", f"--checkpoint={tiny_folder}", f"--output={out}"])
  ours, theirs = pt.load_model(tiny_folder), pt.load_model(str(out))
  assert ours.loaded.fingerprint == theirs.loaded.fingerprint
  assert theirs.loaded.vocabulary.vocab_size == ours.loaded.vocabulary.vocab_size


@upstream
@pytest.mark.parametrize("name", ["mrpc", "rte", "sst2"])
def test_upstream_prompts(name):
  path = SHARED / "prompts" / "t5_1_1_lm100k_base" / f"{name}.npy"
  made = pt.load_prompt(path)
  assert made.parameters == 76_800 and made.module.lengths == {"encoder": 100}
  np.testing.assert_array_equal(prompts.fold(made), np.load(path))


@upstream
def test_the_prompt_of_an_upstream_checkpoint():
  made = pt.load_prompt(SHARED / "t5x_tiny_orbax")
  assert prompts.fold(made).shape == (100, 4)
  with pytest.raises(ValueError, match="holds no encoder/prompt/prompt/prompt"):
    pt.load_prompt(SHARED / "t5x_tiny_checkpoint")


def array(path, value):
  with path.open("wb") as file:
    np.save(file, value, allow_pickle=True)


BAD = {
  "no array of numpy": lambda path: path.write_text("hello"),
  "cannot be loaded when allow_pickle=False": lambda p: array(
    p, np.array([{}], object)
  ),
  r"an array float64 \(3,\)": lambda path: array(path, np.ones(3)),
  r"an array int64 \(3, 2\)": lambda path: array(path, np.ones((3, 2), np.int64)),
  "not finite": lambda path: array(path, np.full((3, 2), np.nan)),
}


@pytest.mark.parametrize("words", BAD)
def test_bad_arrays(tmp_path, words):
  BAD[words](tmp_path / "x")
  with pytest.raises(ValueError, match=words):
    pt.load_prompt(tmp_path / "x")


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"peft_type": "LORA"}, "type LORA; PROMPT_TUNING, P_TUNING, .* can be read"),
    (
      {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 6},
      "says .* layers, .* but the table is",
    ),
    ({"num_virtual_tokens": 5}, "says 5 rows"),
    ({"num_virtual_tokens": "x"}, "num_virtual_tokens is 'x'; it must be a whole"),
    ({"num_virtual_tokens": True}, "num_virtual_tokens is True"),
    ({"num_virtual_tokens": 10**40}, f"says {10**40} rows"),
    ({"num_virtual_tokens": float("inf")}, "holds the number Infinity"),
    ({"peft_type": ["PROMPT_TUNING"]}, "peft_type is .*it must be a text"),
    ({"peft_type": None}, "peft_type is None"),
    (
      {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 6, "num_layers": 1.5},
      "num_layers is 1.5; it must be a whole number from 1 on",
    ),
  ],
)
def test_bad_adapters(tmp_path, fields, words):
  stated = json.loads((ADAPTER / "adapter_config.json").read_text())
  adapter(tmp_path, json.dumps({**stated, **fields}))
  with pytest.raises(ValueError, match=words):
    pt.load_prompt(tmp_path)


def adapter(folder, config=None, data=None):
  """An adapter of other contents."""
  config = (ADAPTER / peft.CONFIG).read_text() if config is None else config
  data = (ADAPTER / peft.WEIGHTS).read_bytes() if data is None else data
  (folder / peft.CONFIG).write_text(config)
  (folder / peft.WEIGHTS).write_bytes(data)


@pytest.mark.parametrize(
  ("config", "words"),
  [
    ("[" * 100_000, "cannot be read"),
    ('{"a": ' * 90 + "1" + "}" * 90, "nested deeper than 64"),
    ("[]", "holds list, not an object"),
    ('{"num_virtual_tokens": 20}', "lacks peft_type: a text"),
    ('{"peft_type": "P_TUNING"}', "lacks num_virtual_tokens: a whole number"),
    ('{"num_virtual_tokens": 1e999}', "the number 1e999, which is not finite"),
    ("", "cannot be read"),
  ],
)
def test_adapters_whose_configuration_is_none(tmp_path, config, words):
  adapter(tmp_path, config)
  with pytest.raises(source.UnreadableError, match=f"{peft.CONFIG}' .*{words}"):
    pt.load_prompt(tmp_path)


def tensors(**named):
  return safetensors_numpy.save(named)


@pytest.mark.parametrize(
  ("data", "words"),
  [
    (tensors(a=VECTORS), r"lacks prompt_embeddings; it holds \['a'\]"),
    (tensors(prompt_embeddings=VECTORS[0]), r"prompt_embeddings \(\d+,\)"),
    (tensors(prompt_embeddings=np.ones((6, 8), np.uint8)), "prompt_embeddings uint8"),
    (tensors(prompt_embeddings=np.ones((6, 8), bool)), "prompt_embeddings bool"),
    (
      tensors(prompt_embeddings=np.full((6, 8), np.inf, np.float32)),
      "prompt_embeddings holds numbers that are not finite",
    ),
    (b"x" * 50, "it says that its header takes"),
  ],
)
def test_adapters_of_other_weights(tmp_path, data, words):
  adapter(tmp_path, data=data)
  with pytest.raises(source.UnreadableError, match=f"{peft.WEIGHTS}'.*{words}"):
    pt.load_prompt(tmp_path)


def test_factors_of_a_task_that_are_no_numbers(tmp_path):
  folder = ADAPTER.parent / "multitask"
  held = safetensors_numpy.load_file(folder / peft.WEIGHTS)
  for name, change, words in (
    ("prefix_task_cols", lambda x: np.full_like(x, np.nan), "cols holds numbers that"),
    ("prefix_task_rows", lambda x: x.astype(np.int32), "prefix_task_rows int32"),
    ("prefix_task_rows", lambda x: x[:, :, :-1], "for a table"),
    ("prefix_task_cols", lambda x: x * np.float32(1e38), "times the task's factors"),
  ):
    held[peft.TABLE] = np.full_like(held[peft.TABLE], 1e30)
    data = tensors(**{**held, name: np.ascontiguousarray(change(held[name]))})
    adapter(tmp_path, (folder / peft.CONFIG).read_text(), data)
    with pytest.raises(source.UnreadableError, match=words):
      pt.load_prompt(tmp_path, task=1)


def test_an_adapters_files_are_its_own(tmp_path):
  folder, out = tmp_path / "x", tmp_path / "secret"
  folder.mkdir()
  adapter(folder)
  (folder / peft.WEIGHTS).rename(out)
  for make, words in (
    (lambda path: path.symlink_to(out), "is a link that leaves its folder"),
    (os.mkfifo, "is a pipe, a socket or a device"),
    (pathlib.Path.mkdir, "is a folder"),
    (lambda path: path.symlink_to(path), "cannot be read"),
    (lambda path: path.symlink_to("/dev/zero"), "a device"),
    (lambda path: None, "cannot be read: No such file"),
  ):
    path = folder / peft.WEIGHTS
    make(path)
    with pytest.raises(source.UnreadableError, match=words):
      pt.load_prompt(folder)
    if path.is_dir():
      path.rmdir()
    else:
      path.unlink(missing_ok=True)


def test_links_of_the_hubs_cache_are_followed(tmp_path):
  folder, blobs = tmp_path / "model" / "snapshots" / "abc", tmp_path / "model" / "blobs"
  folder.mkdir(parents=True)
  blobs.mkdir()
  adapter(folder)
  for number, path in enumerate(sorted(folder.iterdir())):
    path.rename(blobs / str(number))
    path.symlink_to(blobs / str(number))
  pt.load_prompt(folder)


def test_a_multitask_adapter_needs_a_task():
  with pytest.raises(ValueError, match="`task` must be from 0 to 1, got None"):
    pt.load_prompt(ADAPTER.parent / "multitask")


def test_what_reads_its_input_does_not_fold(tmp_path, capsys):
  import method_tools

  case = method_tools.case("s_idpg_dnn_embeddings", tmp_path)
  card = {"method": "m", "backbone": {"width": method_tools.H}}
  made = product.Product(case.model.prompt, {"prompt": case.params["prompt"]}, card)
  made.save(tmp_path / "prompt")
  out = tmp_path / "out"
  with pytest.raises(SystemExit) as stop:
    export.main(["--to=numpy", f"--prompt={tmp_path / 'prompt'}", f"--output={out}"])
  assert stop.value.code == 2
  assert "reads its input" in capsys.readouterr().err and not out.exists()


def test_logits_of_what_was_read_and_written_agree(saved, tmp_path):
  export.main(["--to=peft", f"--prompt={saved}", f"--output={tmp_path / 'adapter'}"])
  backbone, params = source.load(open_foreign(GOLDENS / "hugging_face" / "t5_1_0"))
  ids = jnp.array([[5, 6, 1]])
  found = []
  for path in (saved, tmp_path / "adapter"):
    made = pt.load_prompt(path)
    batch = features(ids, ids, made.module.lengths)
    model = PromptedModel(backbone, made.module)
    found.append(model.logits(made.params(params), batch))
  np.testing.assert_array_equal(*found)

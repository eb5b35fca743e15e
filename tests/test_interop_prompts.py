"""Prompts of other libraries, read and written."""

import json
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
from prompt_tuning.interop.load import open_foreign

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
    ({"num_virtual_tokens": "x"}, "cannot be read"),
  ],
)
def test_bad_adapters(tmp_path, fields, words):
  stated = json.loads((ADAPTER / "adapter_config.json").read_text())
  (tmp_path / "adapter_config.json").write_text(json.dumps({**stated, **fields}))
  data = (ADAPTER / "adapter_model.safetensors").read_bytes()
  (tmp_path / "adapter_model.safetensors").write_bytes(data)
  with pytest.raises(ValueError, match=words):
    pt.load_prompt(tmp_path)
  (tmp_path / "adapter_config.json").write_text(json.dumps(stated))
  (tmp_path / "adapter_model.safetensors").write_bytes(data[:50])
  with pytest.raises(ValueError, match="cannot be read"):
    pt.load_prompt(tmp_path)


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
  with pytest.raises(SystemExit):
    export.main(["--to=numpy", f"--prompt={tmp_path / 'prompt'}", f"--output={out}"])
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

"""pytorch_model.bin: through torch's loader of weights, or not at all."""

import json
import pathlib
import pickle
import shutil
import types

import ml_dtypes
import numpy as np
import pytest

from prompt_tuning.backbones.t5 import files
from prompt_tuning.core.trainable import flatten
from prompt_tuning.interop import huggingface, pickles, shards, source

GOLDENS = pathlib.Path(__file__).parent / "goldens" / "hugging_face"


class Tensor:
  """What is asked of a torch tensor, over a numpy array."""

  layout, device = "strided", types.SimpleNamespace(type="cpu")

  def __init__(self, value):
    self.value, self.shape, self.dtype = value, value.shape, f"torch.{value.dtype}"

  def detach(self):
    return self

  contiguous = detach

  def view(self, what):
    return Tensor(self.value.reshape(-1) if what == -1 else self.value.view(what))

  def __getitem__(self, part):
    return Tensor(self.value[part])

  def numpy(self):
    assert self.value.dtype != ml_dtypes.bfloat16
    return self.value


def stand_in(version="2.6.0+cpu"):
  """A torch that loads what numpy saved, and notes how it was asked."""
  asked = []

  def load(path, **settings):
    asked.append(settings)
    with np.load(path) as stored:
      return {name: Tensor(value) for name, value in stored.items()}

  return types.SimpleNamespace(
    load=load,
    asked=asked,
    Tensor=Tensor,
    strided="strided",
    int16=np.int16,
    __version__=version,
  )


def as_pickles(name, folder, save):
  """A golden folder with its safetensors saved in another way, under torch's names."""
  shutil.copytree(GOLDENS / name, folder)
  for path in folder.glob("*.safetensors"):
    save(
      {name: lazy.read() for name, lazy in shards.tensor_files.tensors(path).items()},
      path.with_name(path.stem.replace("model", "pytorch_model") + ".bin"),
    )
    path.unlink()
  index = folder / shards.INDEX
  if index.is_file():
    text = index.read_text().replace('"model-', '"pytorch_model-')
    (folder / shards.PICKLED_INDEX).write_text(text.replace(".safetensors", ".bin"))
    index.unlink()
  return folder


def with_numpy(arrays, path):
  with path.open("wb") as file:
    np.savez(file, **arrays)


def digest(folder):
  return files.fingerprint(source.load(huggingface.open_source(folder))[1])


@pytest.mark.parametrize("name", ["t5_1_0", "mt5_sharded"])
def test_weights_are_those_of_the_safetensors(name, tmp_path, monkeypatch):
  torch = stand_in()
  monkeypatch.setattr(pickles, "_torch", lambda: torch)
  monkeypatch.setattr(pickles, "_REOPEN_BYTES", 500)
  folder = as_pickles(name, tmp_path / "model", with_numpy)
  assert digest(folder) == digest(GOLDENS / name)
  wanted = {"map_location": "cpu", "weights_only": True, "mmap": True}
  # What was read leaves memory: files are opened again after some hundred bytes.
  assert len(torch.asked) > 3 and all(asked == wanted for asked in torch.asked)


def test_without_a_safe_torch_pickles_are_refused(tmp_path, monkeypatch):
  folder = as_pickles("t5_1_0", tmp_path / "model", with_numpy)
  old = stand_in("2.5.1")
  monkeypatch.setattr(pickles, "_torch", lambda: old)
  with pytest.raises(ValueError, match="torch 2.5.1 is not safe. .* as safetensors"):
    huggingface.open_source(folder)
  assert not old.asked and not pickles.available()

  def missing():
    raise ImportError("torch")

  monkeypatch.setattr(pickles, "_torch", missing)
  with pytest.raises(ValueError, match="is a pickle. Install torch .* as safetensors"):
    huggingface.open_source(folder)
  assert not pickles.available()


def test_safetensors_are_preferred_and_other_pickles_named(tmp_path, monkeypatch):
  monkeypatch.setattr(pickles, "tensors", None)
  folder = tmp_path / "model"
  shutil.copytree(GOLDENS / "t5_1_0", folder)
  (folder / "pytorch_model.bin").write_bytes(b"anything")
  assert digest(folder) == digest(GOLDENS / "t5_1_0")
  (folder / "model.safetensors").rename(folder / "weights.pkl")
  (folder / "pytorch_model.bin").rename(folder / "weights.bin")
  with pytest.raises(ValueError, match="'weights.bin', 'weights.pkl'.*as safetensors"):
    huggingface.open_source(folder)


def with_torch(arrays, path, **settings):
  torch = pytest.importorskip("torch")
  torch.save({k: torch.from_numpy(v) for k, v in arrays.items()}, path, **settings)


def with_old_torch(arrays, path):
  with_torch(arrays, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("save", [with_torch, with_old_torch])
@pytest.mark.parametrize("name", ["t5_1_0", "mt5_sharded"])
def test_real_files_of_torch(name, save, tmp_path):
  pytest.importorskip("torch")
  folder = as_pickles(name, tmp_path / "model", save)
  assert digest(folder) == digest(GOLDENS / name)
  bad = next(folder.glob("*.bin"))
  bad.write_bytes(bad.read_bytes()[:-200])
  with pytest.raises(ValueError, match="is damaged, or holds more than weights"):
    huggingface.open_source(folder)


def test_real_bfloat16_and_leftovers_of_t5_1_0(tmp_path):
  """Old files repeat the table as lm_head and hold a bias that nothing reads."""
  torch = pytest.importorskip("torch")

  def save(arrays, path):
    tensors = {k: torch.from_numpy(v).bfloat16() for k, v in arrays.items()}
    tensors["lm_head.weight"] = tensors["shared.weight"]
    tensors[huggingface.NEVER_READ] = torch.zeros(32, 3)
    torch.save(tensors, path)

  folder = as_pickles("t5_1_0", tmp_path / "model", save)
  backbone, params = source.load(huggingface.open_source(folder))
  assert backbone.config.logits_via_embedding
  assert {x.dtype.name for x in flatten(params).values()} == {"bfloat16"}
  assert files.fingerprint(params) == digest(GOLDENS / "t5_1_0")


class Touch:
  """Runs code when it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return (pathlib.Path.touch, (self.path,))


def test_code_in_a_file_is_not_run(tmp_path):
  torch = pytest.importorskip("torch")
  shutil.copytree(GOLDENS / "t5_1_0", tmp_path / "model")
  folder, mark = tmp_path / "model", tmp_path / "mark"
  (folder / "model.safetensors").unlink()
  for save in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))):
    save({"shared.weight": Touch(mark)}, folder / shards.PICKLED)
    with pytest.raises(ValueError, match="holds more than weights"):
      huggingface.open_source(folder)
  torch.save([torch.zeros(2)], folder / shards.PICKLED)
  with pytest.raises(ValueError, match="no table of named tensors"):
    huggingface.open_source(folder)
  assert not mark.exists()


def test_a_head_that_is_not_the_table(tmp_path):
  """Logits that are scaled and yet separate: no T5 computes them."""
  folder = tmp_path / "model"
  shutil.copytree(GOLDENS / "t5_1_1", folder)
  fields = json.loads((folder / "config.json").read_text())
  fields["scale_decoder_outputs"] = True
  (folder / "config.json").write_text(json.dumps(fields))
  arrays = shards.tensors(folder)
  made = {n: x.read() for n, x in arrays.items()}
  made["lm_head.weight"] = made["shared.weight"] + 1
  outs = {n: shards.Out(x.shape, x.dtype, lambda x=x: x) for n, x in made.items()}
  shards.save(folder, outs, 1 << 30)
  with pytest.raises(ValueError, match="lm_head.weight that is not shared.weight"):
    huggingface.open_source(folder)

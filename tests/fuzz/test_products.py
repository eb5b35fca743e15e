"""Folders of prompts changed at random: refused, or loaded and asked, in one piece.

Digests and shapes are made to agree where that can be done, so that changes reach what
stands behind them. Nothing is imported or opened that a card names.

  PROMPT_TUNING_THOROUGH=1 python -m pytest tests/fuzz/test_products.py -s
"""

import hashlib
import json
import os
import random
import shutil
import sys

import fuzz_tools
import numpy as np
import pytest
import serving_tools
from safetensors import numpy as safetensors_numpy

from prompt_tuning import answer
from prompt_tuning.engine import product
from prompt_tuning.interop import prompts
from prompt_tuning.interop.load import load

COUNT = 4000 if os.environ.get("PROMPT_TUNING_THOROUGH") else 120
SEED = int(os.environ.get("PROMPT_TUNING_FUZZ_SEED", "0"))
# What a stranger may write where a class, a name or a number is meant.
ODD = (
  "os:system", "evil:Word", "prompt_tuning.data.files:Files", "gs://bucket/x",
  "owner/name", "../../outside", "/dev/zero", "\ud800", "encoder.kv", "decoder.input",
  "encoder.self.key.scale", 0, -1, 3.5, 10**400, float("inf"), None, True, [], {},
  [[[]]], {"class": "prompt_tuning.core.prompt:Prompt"},
)  # fmt: skip


@pytest.fixture(scope="module", params=["prompt_tuning", "s_idpg_dnn_embeddings"])
def folder(request, tmp_path_factory, tiny_folder):
  made = tmp_path_factory.mktemp("products")
  return serving_tools.made(tiny_folder, made, request.param, labels=["good", "bad"])


def nodes(tree):
  """(container, key) of everything in a tree."""
  pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
  for key, value in list(pairs):
    yield tree, key
    if isinstance(value, (dict, list)) and value:
      yield from nodes(value)


def changed(folder, rng):
  card = json.loads((folder / "card.json").read_text())
  tensors = safetensors_numpy.load_file(str(folder / "prompt.safetensors"))
  kind = rng.choice(["card", "card", "module", "tensors", "bytes"])
  if kind == "bytes":
    path = folder / rng.choice(["card.json", "prompt.safetensors"])
    data = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 4)):
      data[rng.randrange(len(data))] = rng.randrange(256)
    path.write_bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])
    return
  if kind == "tensors":
    name = rng.choice(sorted(tensors))
    value = tensors.pop(name)
    value = rng.choice([value * np.nan, value[:1], value.astype(np.int32), value])
    tensors[rng.choice([name, "backbone/x", "prompt", f"{name}/y", "a"])] = value
  else:
    tree = card["module"] if kind == "module" else card
    for _ in range(rng.randint(1, 2)):
      where, key = rng.choice(list(nodes(tree)))
      if rng.random() < 0.2 and isinstance(where, dict):
        del where[key]
      else:
        where[key] = rng.choice(ODD)
      if not tree:
        break
  written = safetensors_numpy.save(tensors)
  (folder / "prompt.safetensors").write_bytes(written)
  if rng.random() < 0.7:
    card["digest"] = hashlib.sha256(written).hexdigest()
    card["shapes"] = {name: list(value.shape) for name, value in tensors.items()}
    card["trained"] = sorted(tensors)
  (folder / "card.json").write_text(json.dumps(card))


def ask(loaded, folder):
  """Loads a prompt as a user would and answers; True if it could be loaded."""
  try:
    made = product.load(folder)
    prompts.load(folder)
  except ValueError:
    return False
  try:
    ready = answer.session(loaded, made, force=True)
    batch = {"inputs": np.ones((1, 8), np.int32)}
    places = np.arange(8)[None] - 0
    P = ready.model.lengths.get("encoder", 0)
    batch["prompt_index"] = np.where(places < P, places, -1)
    ready.model.inject(ready.params, batch)
  except ValueError:
    pass
  return True


def test_changed_products(folder, tmp_path, tiny_folder, capsys):
  (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
  loaded, rng = load(tiny_folder), random.Random(SEED)
  read = 0
  sys.path.insert(0, str(tmp_path))
  try:
    for number in range(COUNT):
      place = tmp_path / "prompt"
      shutil.rmtree(place, ignore_errors=True)
      shutil.copytree(folder, place)
      changed(place, rng)
      try:
        with fuzz_tools.limited():
          read += ask(loaded, place)
      except Exception as error:
        raise AssertionError(f"change {number} of seed {SEED}") from error
  finally:
    sys.path.remove(str(tmp_path))
  assert "evil" not in sys.modules
  assert 0 < read < COUNT
  with capsys.disabled():
    print(f"\n{folder.parent.name}: {COUNT - read} refused, {read} read, of {COUNT}")

"""Serving artifacts and adapters changed at random, digests made to agree.

A reader refuses with ValueError or loads, in time, and opens nothing outside the
folder. PROMPT_TUNING_THOROUGH=1 runs thousands of changes:

  PROMPT_TUNING_THOROUGH=1 python -m pytest tests/fuzz/test_artifacts.py -s
"""

import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import struct
import sys

import fuzz_tools
import pytest
import serving_tools

from prompt_tuning.interop import peft, prompts, serving, serving_card

COUNT = 2000 if os.environ.get("PROMPT_TUNING_THOROUGH") else 40
SEED = int(os.environ.get("PROMPT_TUNING_FUZZ_SEED", "0"))
GOLDENS = pathlib.Path(__file__).parent.parent / "goldens"
LABELS = ["good", "bad"]
# What a stranger may write where a name, a number or a text is meant.
ODD = (
  "../outside/secret", "../outside", "/dev/zero", "/etc/passwd", "..", ".", "a\\b",
  "a\0b", "\ud800", "x" * 5000, float("inf"), float("nan"), -0.0, 10**400, [[[]]],
  {"b": {}}, ["b", "t"], ["b", -1], "choose", "generate", "card.json",
)  # fmt: skip

watched: list[pathlib.Path] = []
opened: list[str] = []


def _note(event, arguments):
  if event == "open" and watched and isinstance(arguments[0], (str, bytes)):
    path = os.path.realpath(os.fsdecode(arguments[0]))
    if path.startswith(str(watched[0].parent)) and not path.startswith(str(watched[0])):
      opened.append(path)


sys.addaudithook(_note)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory, tiny_folder):
  """A folder beside which a secret lies."""
  folder = tmp_path_factory.mktemp("strangers")
  prompt = serving_tools.made(tiny_folder, folder, "prompt_tuning", labels=LABELS)
  flags = "--steps=2", "--platforms=cpu"
  out = serving_tools.write("stablehlo", prompt, folder / "inside", *flags)
  beside(folder)
  return out


@pytest.fixture
def adapter(tmp_path):
  """The same of an adapter."""
  shutil.copytree(GOLDENS / "peft" / "prompt_tuning", tmp_path / "inside")
  beside(tmp_path)
  return tmp_path / "inside"


def beside(folder):
  (folder / "outside").mkdir()
  (folder / "outside" / "secret").write_bytes(b"secret")


def edited(tree, rng):
  """A tree of JSON with a few nodes changed."""
  for _ in range(rng.randint(1, 3)):
    tree = fuzz_tools.edited(tree, rng)
    if isinstance(tree, dict) and tree and rng.random() < 0.5:
      tree = replaced(tree, rng)
  return tree


def replaced(tree, rng):
  """The tree with an odd value, or with an odd name, at some depth."""
  key = rng.choice(list(tree))
  inner = tree[key]
  if isinstance(inner, dict) and inner and rng.random() < 0.7:
    return {**tree, key: replaced(inner, rng)}
  if rng.random() < 0.3:
    kept = {name: value for name, value in tree.items() if name != key}
    return {**kept, str(rng.choice(ODD)): inner}
  return {**tree, key: rng.choice(ODD)}


def text_of(tree, rng):
  """JSON, now and then nested deep."""
  text = json.dumps(tree)
  if rng.random() < 0.05:
    depth = rng.choice([70, 900, 100_000])
    return '{"a": ' * depth + text + "}" * depth
  return text


def change_card(folder, rng):
  card = edited(json.loads((folder / "card.json").read_text()), rng)
  if isinstance(card, dict):
    card["digest"] = serving_card.digest(card)
  (folder / "card.json").write_text(text_of(card, rng))


def change_config(folder, rng):
  path = folder / peft.CONFIG
  path.write_text(text_of(edited(json.loads(path.read_text()), rng), rng))


def change_header(path, rng):
  data = path.read_bytes()
  size = struct.unpack("<Q", data[:8])[0]
  if rng.random() < 0.2:
    start = rng.choice([0, 2**63, 2**64 - 1, size + 1, max(0, size - 1)])
    path.write_bytes(struct.pack("<Q", start) + data[8:])
    return
  text = text_of(edited(json.loads(data[8 : 8 + size]), rng), rng).encode()
  path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


def change_bytes(path, rng):
  data = path.read_bytes()
  for _ in range(rng.randint(1, 4)):
    kind = rng.choice(["flip", "truncation", "splice", "claim"])
    # The tables of a program's own format stand at both ends.
    data = fuzz_tools.CHANGES[kind](data, rng, path) or b"x"
  path.write_bytes(data)


def change_links(folder, rng):
  """A file becomes a link, a pipe or a folder."""
  path = rng.choice([one for one in sorted(folder.iterdir()) if one.is_file()])
  path.unlink()
  kind = rng.choice(["pipe", "folder", "/dev/zero", "../outside/secret", path.name])
  if kind == "pipe":
    os.mkfifo(path)
  elif kind == "folder":
    path.mkdir()
  else:
    path.symlink_to(kind)


def signed(folder, name):
  """Makes the card's digests agree with a changed file."""
  card = json.loads((folder / "card.json").read_text())
  data = (folder / name).read_bytes()
  card["files"][name] = hashlib.sha256(data).hexdigest()
  card["digest"] = serving_card.digest(card)
  (folder / "card.json").write_text(json.dumps(card))


def change_weights(folder, rng):
  change_header(folder / serving_card.WEIGHTS, rng)
  signed(folder, serving_card.WEIGHTS)


def change_program(folder, rng):
  name = serving_card.PROGRAM.format(rng.choice(["choose", "generate"]))
  change_bytes(folder / name, rng)
  signed(folder, name)


def change_tensors(folder, rng):
  change_header(folder / peft.WEIGHTS, rng)


def run(folder, read, change, count):
  """(refused, read) of `count` changes, each of a fresh copy."""
  whole = {path.name: path.read_bytes() for path in folder.iterdir()}
  refused = accepted = 0
  with fuzz_tools.limited():
    for number in range(count):
      rng = random.Random(f"{change.__name__} {SEED} {number}")
      change(folder, rng)
      watched[:], opened[:] = [folder], []
      signal.alarm(fuzz_tools.SECONDS)
      try:
        read(folder)
        accepted += 1
      except ValueError as error:
        assert str(error)
        refused += 1
      except BaseException as error:
        raise AssertionError(f"case {number} of seed {SEED}") from error
      finally:
        signal.alarm(0)
        watched.clear()
        restore(folder, whole)
      assert not opened, (number, opened)
  read(folder)
  print(f"{change.__name__}: {refused} refused, {accepted} read")
  return refused, accepted


def restore(folder, whole):
  for path in folder.iterdir():
    if path.is_dir() and not path.is_symlink():
      path.rmdir()
    elif path.is_symlink() or not path.is_file() or path.name not in whole:
      path.unlink()
  for name, data in whole.items():
    path = folder / name
    if not path.is_file() or path.read_bytes() != data:
      path.write_bytes(data)


@pytest.mark.parametrize(
  "change", [change_card, change_weights, change_program, change_links]
)
def test_changed_artifacts(artifact, change):
  refused, _ = run(artifact, serving.load, change, COUNT)
  assert refused > COUNT // 4


@pytest.mark.parametrize("change", [change_config, change_tensors, change_links])
def test_changed_adapters(adapter, change):
  refused, _ = run(adapter, prompts.load, change, 3 * COUNT)
  assert refused > COUNT // 4

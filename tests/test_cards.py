"""A card comes from whoever wrote it: it is data, and builds words of methods alone."""

import ast
import dataclasses
import inspect
import json
import os
import pathlib
import sys

import flax.linen as nn
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

import prompt_tuning
from prompt_tuning import answer
from prompt_tuning.core import describe
from prompt_tuning.core.prompt import Prompt
from prompt_tuning.engine import card, product
from prompt_tuning.parameterisers.dense import Dense

PACKAGE = pathlib.Path(prompt_tuning.__file__).parent


def every_class() -> list[str]:
  """All classes of the package, as a card would name them; nothing is imported."""
  found = []
  for path in sorted(PACKAGE.rglob("*.py")):
    module = ".".join(
      ["prompt_tuning", *path.relative_to(PACKAGE).with_suffix("").parts]
    )
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
      if isinstance(node, ast.ClassDef):
        found.append(f"{module}:{node.name}")
  return found


def words() -> dict[str, type]:
  """Those that a card can build."""
  found = {}
  for path in every_class():
    try:
      found[path] = describe.word(path)
    except ValueError:
      continue
  return found


def test_a_card_builds_words_alone():
  allowed = words()
  assert len(allowed) > 15 and len(every_class()) > 80
  for path in allowed:
    room = path.removeprefix("prompt_tuning.").split(":")[0].split(".")[0]
    assert room in ("core", "conditions", "parameterisers", "transforms", "heads"), path
  core = {path for path in allowed if path.startswith("prompt_tuning.core")}
  assert core == {
    f"prompt_tuning.core.{name}"
    for name in (
      *("prompt:Prompt", "prompt:Together", "gallery:Gallery"),
      *("places:At", "places:AtLayers", "places:AtKeysValues"),
    )
  }


def test_what_building_a_word_touches_runs_nothing():
  """No word imports, opens or runs anything: its source names none of what could."""
  never = ("import_module", "__import__", "eval(", "exec(", "open(", "subprocess")
  for path, cls in words().items():
    for base in cls.__mro__:
      if base.__module__.startswith("prompt_tuning"):
        text = inspect.getsource(base)
        assert not [name for name in never if name in text], path


def stranger(folder: pathlib.Path) -> str:
  (folder / "evil.py").write_text("raise SystemExit('ran')")
  return "evil"


FIELDS = {
  "length": 4,
  "parameterise": {"class": "prompt_tuning.parameterisers.dense:Dense"},
  "site": "encoder.input",
}


@pytest.mark.parametrize(
  "module",
  [
    {
      "class": "prompt_tuning.data.fewshot:FewShot",
      "task": {
        "class": "prompt_tuning.data.registered:Registered",
        "name": "x",
        "module": "evil",
      },
    },
    {"class": "prompt_tuning.data.files:Files", "train": "/etc/passwd"},
    {"class": "prompt_tuning.engine.checkpoint:Checkpoints"},
    {"class": "evil:Word"},
    {"class": "os:system"},
    {"class": "flax.linen.linear:Dense", "features": 3},
    {"class": "prompt_tuning.core.prompt:nn"},
    {"class": "prompt_tuning.core.places:dataclasses"},
    {"class": "prompt_tuning.core.prompt:Prompt.__call__"},
    {"class": 3},
    {"class": ["a"]},
    {"class": "prompt_tuning.core..places:At"},
    [],
    "text",
    3,
    {},
    {"class": "prompt_tuning.core.prompt:Prompt", "length": 4},
    {"class": "prompt_tuning.core.prompt:Prompt", "length": 1e400},
    {"class": "prompt_tuning.core.places:At", "place": "encoder.input"},
    *(
      {"class": "prompt_tuning.core.prompt:Prompt", **FIELDS, **odd}
      for odd in (
        {"parameterise": None},
        {"parameterise": "text"},
        {"parameterise": {"prompts": 3}},
        {"transforms": None},
        {"transforms": [1]},
        {"transforms": True},
        {"length": 10**400},
        {"length": True},
      )
    ),
    {"class": "prompt_tuning.core.prompt:Together", "prompts": 3},
    {"class": "prompt_tuning.core.prompt:Together", "prompts": [3]},
    {
      "class": "prompt_tuning.core.prompt:Prompt",
      "length": 4,
      "parameterise": {"class": "prompt_tuning.parameterisers.dense:Dense"},
      "site": "here",
    },
  ],
)
def test_a_card_of_a_stranger_is_one_error(saved, tmp_path, monkeypatch, module):
  monkeypatch.syspath_prepend(str(tmp_path))
  stranger(tmp_path)
  change(saved, module=module)
  with pytest.raises(ValueError, match="card.json"):
    product.load(saved)
  assert "evil" not in sys.modules


@pytest.fixture
def saved(tmp_path):
  """The folder of a prompt of four positions."""
  module = Prompt(4, Dense(None), "encoder.input")
  table = np.ones((1, 4, 16), np.float32)
  facts = {"backbone": {"name": "x", "width": 16}, "layout": {"place": "front"}}
  made = product.Product(module, {"prompt": {"parameterise": {"prompt": table}}}, facts)
  made.save(tmp_path / "prompt")
  return tmp_path / "prompt"


def change(folder, **fields):
  path = folder / "card.json"
  path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_every_key_is_checked(saved):
  text = (saved / "card.json").read_text()
  wrong = [None, 3.5, -1, "x", [1], {"a": {}}, True, [[]], {"a": "b"}]

  def keys(schema, above=()):
    for key, value in schema.items():
      yield from keys(value, (*above, key)) if isinstance(value, dict) else ()
      yield (*above, key), value

  tried = 0
  for path, wanted in keys(card.SCHEMA):
    for value in wrong:
      fields = json.loads(text)
      inner = fields
      for key in path[:-1]:
        inner = inner.setdefault(key, {})
      inner[path[-1]] = value
      fits = isinstance(wanted, tuple) and wanted[1](value)
      if fits or isinstance(wanted, dict) and isinstance(value, dict):
        continue
      tried += 1
      (saved / "card.json").write_text(json.dumps(fields))
      with pytest.raises(ValueError, match=rf"card.json.*{path[-1]}"):
        product.load(saved)
  assert tried > 100


@pytest.mark.parametrize(
  "text",
  [
    "",
    "3",
    "null",
    "[" * 100_000,
    '{"a":' * 100_000,
    '{"format": NaN}',
    '{"format": "prompt_tuning/prompt/1"}',
    "\ud800".encode("utf-8", "surrogatepass"),
    b"\xff\xfe",
  ],
  ids=range(9),
)
def test_a_damaged_card_is_one_error(saved, text):
  data = text if isinstance(text, bytes) else text.encode()
  (saved / "card.json").write_bytes(data)
  with pytest.raises(ValueError, match=r"card\.json"):
    product.load(saved)


@pytest.mark.parametrize("name", ["card.json", "prompt.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_a_file_that_is_none(saved, name, kind):
  (saved / name).unlink()
  if kind == "pipe":
    os.mkfifo(saved / name)
  elif kind == "folder":
    (saved / name).mkdir()
  else:
    (saved / name).symlink_to("/dev/zero")
  with pytest.raises(ValueError, match=f"holds no {name}"):
    product.load(saved)


def numbers(value, dtype=np.float32):
  return np.full((1, 4, 16), value, dtype)


@pytest.mark.parametrize(
  ("tensors", "words"),
  [
    ({"prompt/parameterise/prompt": numbers(np.nan)}, "prompt/.*is not finite"),
    ({"prompt/parameterise/prompt": numbers(-np.inf)}, "prompt/.*is not finite"),
    ({"prompt/parameterise/prompt": numbers(1, np.uint8)}, "of the type uint8"),
    ({"prompt/parameterise/prompt": numbers(1, np.bool_)}, "of the type bool"),
    ({"prompt/parameterise/prompt": numbers(1, np.int32)}, "of the type int32"),
    (
      {"prompt/parameterise/prompt": numbers(1), "backbone/x": np.ones(2, np.float32)},
      "'backbone/x'.*holds only prompt",
    ),
    ({"prompt": np.ones(2, np.float32)}, "'prompt'.*holds only prompt"),
  ],
)
def test_numbers_that_no_prompt_holds(saved, tensors, words):
  safetensors_numpy.save_file(tensors, str(saved / "prompt.safetensors"))
  shapes = {name: list(value.shape) for name, value in tensors.items()}
  digest = product.hashlib.sha256((saved / "prompt.safetensors").read_bytes())
  change(saved, shapes=shapes, trained=sorted(shapes), digest=digest.hexdigest())
  with pytest.raises(ValueError, match=words):
    product.load(saved)


def test_a_card_without_its_module_replaces_no_backbone(saved):
  change(saved, module=None)
  with pytest.raises(ValueError, match="holds only backbone"):
    product.load(saved)


def test_numbers_of_another_run_are_refused(saved, tmp_path):
  other = product.load(saved)
  other.trainable["prompt"]["parameterise"]["prompt"] = numbers(2)
  other.save(tmp_path / "other")
  data = (tmp_path / "other" / "prompt.safetensors").read_bytes()
  (saved / "prompt.safetensors").write_bytes(data)
  with pytest.raises(ValueError, match="other numbers of the same shapes"):
    product.load(saved)


@pytest.mark.parametrize(
  "name", ["gs://bucket/model", "s3://a/b", "owner/name", "owner/name@v1", "http://x/y"]
)
def test_a_backbone_that_only_a_card_names_is_not_fetched(saved, name, monkeypatch):
  def fetched(*args, **rest):
    raise AssertionError("fetched")

  monkeypatch.setattr("prompt_tuning.interop.hub.snapshot", fetched)
  change(saved, backbone={"name": name, "width": 16})
  with pytest.raises(ValueError, match="not fetched.*Set `INITIAL_CHECKPOINT_PATH`"):
    answer.open_session(str(saved))


def test_words_of_a_reader_are_built(saved, monkeypatch):
  """A word of a module that the reader has imported; its other classes are not."""

  class Mine(nn.Module):
    reads_code = False

    def __call__(self, code, shape, spec, train=False):
      return None

  @dataclasses.dataclass
  class Other:
    name: str = ""

  module = type(sys)("mine")
  for cls in (Mine, Other):
    cls.__module__ = "mine"
    setattr(module, cls.__name__, cls)
  monkeypatch.setitem(sys.modules, "mine", module)
  assert describe.rebuild({"class": "mine:Mine"}) == Mine()
  with pytest.raises(ValueError, match="not a word of a method"):
    describe.rebuild({"class": "mine:Other"})

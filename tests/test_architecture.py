"""The picture of the rooms in README.md, held against the code."""

import ast
import importlib.util
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "prompt_tuning"

# room -> rooms that it may import (itself always). Keep README.md's picture the same.
WORDS = {"core", "inits", "blocks"}
ARROWS = {
  "core": set(),
  "inits": {"core"},
  "blocks": {"core", "inits"},
  "conditions": WORDS,
  "parameterisers": WORDS,
  "transforms": WORDS,
  "heads": WORDS,
  "decoding": {"core"},
  "outputs": {"core", "decoding"},
  "objectives": {"core", "decoding"},
  "backbones": {"core"},
  "data": {"core"},
  "procedures": {"core"},
  "engine": {"core", "data", "decoding", "outputs", "objectives", "procedures"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path: pathlib.Path) -> set[str]:
  """Modules that a file imports, wherever in it."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative import"
      found.add(node.module)
      found |= {f"{node.module}.{alias.name}" for alias in node.names}
  return found


def rooms(path: pathlib.Path) -> set[str]:
  """Rooms of ours that a file imports; a verb counts as `verbs`."""
  found = set()
  for name in imports(path):
    match = re.fullmatch(r"prompt_tuning\.(\w+)(\..*)?", name)
    if match:
      room = match.group(1)
      found.add(room if (PACKAGE / room).is_dir() else "verbs")
  return found


@pytest.mark.parametrize("room", sorted(ARROWS))
def test_arrows(room):
  for path in (PACKAGE / room).rglob("*.py"):
    other = rooms(path) - ARROWS[room] - {room}
    assert not other, f"{path.relative_to(ROOT)} imports {sorted(other)}"


def test_nobody_asks_what_kind_an_output_is():
  for path in FILES:
    names = {name for name in imports(path) if name.startswith("prompt_tuning.outputs")}
    if path.parent.name == "engine":
      known = {"prompt_tuning.outputs", "prompt_tuning.outputs.output"}
      assert names <= known, path
    if path.parent.name not in ("outputs", "decoding"):
      asked = r"isinstance\([^()]*\b(Choice|Greedy|Sample|Beam)\b|output\.loop\b"
      assert not re.search(asked, path.read_text()), path


def test_every_room_is_in_the_picture():
  folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
  assert folders - {"demo", "interop", "inspect", "terminal"} == set(ARROWS)
  readme = (ROOT / "README.md").read_text()
  for folder in folders:
    assert f"{folder}/" in readme, f"README.md does not show the room {folder}/"


def test_gin_is_imported_by_the_rooms_named_after_it():
  importers = {
    path.relative_to(PACKAGE).as_posix() for path in FILES if "gin" in imports(path)
  }
  assert "engine/config.py" in importers
  for name in importers - {"engine/config.py"}:
    assert re.fullmatch(r"engine/gin_\w+\.py", name), f"{name} imports gin"


def test_gin_text_is_parsed_in_one_place():
  """Of files and flags that the user gave: a card's text is only shown."""
  for path in FILES:
    text = path.read_text()
    parses = re.search(r"\bparse_config\w*\(", text) is not None
    assert parses == (path.relative_to(PACKAGE).as_posix() == "engine/config.py"), path
    assert not re.search(r"""\[["']gin["']\]|get\(["']gin["']""", text), path


def test_mesh_axes_are_named_in_one_place():
  for path in FILES:
    if path.name != "sharding.py":
      assert not {"Mesh(", "NamedSharding("} & set(
        re.findall(r"\b(?:Mesh|NamedSharding)\(", path.read_text())
      ), path


def test_engine_names_no_method():
  names = [path.stem for path in (ROOT / "gin" / "methods").glob("*.gin")]
  for path in (PACKAGE / "engine").glob("*.py"):
    text = path.read_text()
    for name in names:
      quoted = re.search(f"[\"'`]{re.escape(name)}[\"'`]", text)
      assert quoted is None, f"{path} names the method {name}"


def test_folders_of_configuration_hide_no_package():
  assert not list((ROOT / "gin").rglob("*.py"))
  assert not list((ROOT / "configs").rglob("__init__.py"))
  # With the checkout first on the path, `gin` is still the package.
  assert importlib.util.find_spec("gin").origin is not None


def test_gin_files_open_with_what_they_are():
  for path in [*(ROOT / "gin").rglob("*.gin"), *(ROOT / "configs").rglob("*.gin")]:
    assert path.read_text().startswith("# "), path


# Files that may read a family: rooms of families, readers and writers, and demo.
FAMILY_FILES = re.compile(
  r"backbones/|demo/|export\.py$|interop/t5x_engine/|interop/\w+_family\.py$|"
  r"interop/(huggingface|hugging_\w+|own|source|t5x|prompts|bert_\w+|placing)\.py$"
)


def family_names(path: pathlib.Path) -> set[str]:
  """What a file reads of a family: its modules, and the config of a backbone."""
  found = {
    name for name in imports(path) if name.startswith("prompt_tuning.backbones.")
  }
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Attribute) and node.attr == "config":
      owner = ast.unparse(node.value)
      own = owner == "self" and path.name == "sharding.py"
      if owner not in ("jax", "engine") and not own:
        found.add(f"{owner}.config")
  return found


def test_nobody_reads_a_family_but_its_own_files():
  for path in FILES:
    name = _name(path)
    if FAMILY_FILES.match(name):
      continue
    found = family_names(path)
    assert not found, (
      f"{name} reads {sorted(found)}. `core.backbone.Backbone` says what may be asked "
      "of any family: spec, switches, architecture, recast ..."
    )


def test_families_share_what_is_common_and_nothing_else():
  for path in (PACKAGE / "backbones").rglob("*.py"):
    room = path.relative_to(PACKAGE / "backbones").parts[0]
    for name in imports(path):
      match = re.match(r"prompt_tuning\.backbones\.(\w+)", name)
      assert not match or match.group(1) in ("common", room), f"{path}: {name}"


def test_files_of_a_family_are_where_they_are_said_to_be():
  """The list above names no file that reads nothing of a family."""
  mine = [path for path in FILES if path.name != "__init__.py"]
  rooms = {path.parent for path in mine if FAMILY_FILES.match(_name(path))}
  for room in rooms:
    chosen = [path for path in room.glob("*.py") if FAMILY_FILES.match(_name(path))]
    assert any(family_names(path) for path in chosen), room


def _name(path: pathlib.Path) -> str:
  return path.relative_to(PACKAGE).as_posix()

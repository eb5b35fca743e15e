"""What `pip install .` asks for."""

import importlib.machinery
import importlib.util
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]


def lowest():
  """The script `.ci/lowest` as a module."""
  loader = importlib.machinery.SourceFileLoader("lowest", str(ROOT / ".ci/lowest"))
  module = importlib.util.module_from_spec(
    importlib.util.spec_from_loader("lowest", loader)
  )
  exec(loader.get_code("lowest"), module.__dict__)
  return module


def test_each_requirement_has_a_lower_bound_to_run():
  pins = lowest().bounds()
  text = (ROOT / "setup.py").read_text(encoding="utf-8")
  count = len(re.findall(r'^  "[\w.\-\[\]]+>=', text, re.M))
  assert len(pins) == count > 20
  assert all(re.fullmatch(r"[\w.-]+==\d[\w.]*", pin) for pin in pins)
  assert any(pin.startswith("etils==") for pin in pins)


def test_one_tensorflow_is_installed():
  # tensorflow-text, which SeqIO needs, asks for it by this name.
  names = [pin.split("==")[0] for pin in lowest().bounds()]
  assert [name for name in names if name.startswith("tensorflow")] == ["tensorflow"]


def test_what_tfds_imports_undeclared_is_declared():
  assert any(pin.startswith("importlib_resources==") for pin in lowest().bounds())


def test_the_version_stands_in_one_place():
  import prompt_tuning

  version = prompt_tuning.__version__
  assert re.fullmatch(r"\d+\.\d+\.\d+", version)
  citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
  assert f"\nversion: {version}\n" in citation
  assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
  said = [
    path
    for path in [ROOT / "setup.py", *(ROOT / "prompt_tuning").rglob("*.py")]
    if f'"{version}"' in path.read_text(encoding="utf-8")
  ]
  assert said == [ROOT / "prompt_tuning" / "_version.py"]


def test_what_typed_users_need_is_installed():
  text = (ROOT / "setup.py").read_text(encoding="utf-8")
  assert '"prompt_tuning": ["py.typed"]' in text
  assert (ROOT / "prompt_tuning" / "py.typed").is_file()

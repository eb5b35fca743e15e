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

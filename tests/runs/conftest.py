"""Fixtures of the files beside this one."""

import shutil

import process_tools
import pytest
from run_tools import RECIPE, start


@pytest.fixture(scope="module")
def work(tmp_path_factory, tiny_folder):
  """A folder with the data, the recipe and a backbone of its own."""
  folder = tmp_path_factory.mktemp("runs")
  shutil.copytree(tiny_folder, folder / "backbone")
  process_tools.write_task(folder, f"{folder}/backbone", RECIPE)
  return folder


@pytest.fixture(scope="module")
def whole(work, cache):
  """MODEL_DIR of a finished run."""
  start(work, "whole")
  return work / "whole"


@pytest.fixture
def run(work, whole, capsys):
  """(a copy of the finished run; gives it again, and returns what is said)."""
  folder = work / "copy"
  shutil.copytree(whole, folder)

  def again(*flags, code=0):
    if code:
      with pytest.raises(SystemExit) as stop:
        start(work, "copy", *flags)
      assert stop.value.code == code
    else:
      start(work, "copy", *flags)
    said = capsys.readouterr()
    return said.err if code else said.out

  yield folder, again
  shutil.rmtree(folder)

"""A program that starts itself again with large pages, once and only where it may."""

import json
import os
import subprocess
import sys

import pytest

from prompt_tuning.engine import huge_pages

SCRIPT = """
import json, os, sys
from prompt_tuning.engine import huge_pages
def tell(where):
  print(json.dumps([where, os.getpid(), huge_pages.asked(), sys.argv[1:]]))
tell("start")
huge_pages.ask(__file__)
tell("asked")
"""
WORDS = ["two words", "--flag=1"]


@pytest.fixture
def script(tmp_path):
  file = tmp_path / "program.py"
  file.write_text(SCRIPT)

  def run(*command, **environment):
    variables = {k: v for k, v in os.environ.items() if k != huge_pages.VARIABLE}
    done = subprocess.run(
      [sys.executable, *(command or (file,)), *WORDS],
      env={**variables, **environment, "PYTHONPATH": os.pathsep.join(sys.path)},
      stdout=subprocess.PIPE,
      text=True,
      check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]

  run.file = file
  return run


needs_large_pages = pytest.mark.skipif(
  not huge_pages._heard(), reason="Linux or glibc would not give large pages"
)


@needs_large_pages
@pytest.mark.parametrize("before", ["", "glibc.malloc.arena_max=2"])
def test_a_program_starts_again_once_as_the_same_process(script, before):
  settings = {huge_pages.VARIABLE: before} if before else {}
  first, second, last = script(**settings)
  process = first[1]
  assert first == ["start", process, False, WORDS]
  # A launcher waits for the process that it started.
  assert second == ["start", process, True, WORDS]
  assert last == ["asked", process, True, WORDS]


@pytest.mark.parametrize("value", ["0", "1"])
def test_what_the_user_set_stays(script, value):
  setting = f"glibc.malloc.hugetlb={value}"
  lines = script(**{huge_pages.VARIABLE: setting})
  assert [line[0] for line in lines] == ["start", "asked"]


def test_code_that_runs_in_another_program_does_not_start_again(script):
  code = f"import runpy, sys; sys.argv[0] = ''; runpy.run_path({str(script.file)!r})"
  lines = script("-c", code)
  assert [line[0] for line in lines] == ["start", "asked"]


def test_the_command_line_tells_what_was_started(tmp_path):
  started = huge_pages.started_as
  module = "prompt_tuning.train"
  assert started(module, ["python", "-u", "-m", module, "--gin_file=x"])
  assert not started(module, ["python", "-m", "pytest", module])
  assert not started(module, ["python", "-m", "prompt_tuning.eval"])
  script = str(tmp_path / "a.py")
  assert started(script, ["python", script, "--rounds=1"])
  assert not started(script, ["python", str(tmp_path / "b.py")])


@pytest.mark.parametrize("verb", ["train", "eval", "infer", "demo"])
def test_every_verb_asks_before_its_slow_imports(verb, monkeypatch):
  """Its module, run as a program, stops at the question and has imported nothing."""
  code = (
    "import runpy, sys\n"
    "from prompt_tuning.engine import huge_pages\n"
    "def ask(program):\n"
    "  print(program, 'jax' in sys.modules)\n"
    "  raise SystemExit\n"
    "huge_pages.ask = ask\n"
    f"runpy.run_module('prompt_tuning.{verb}', run_name='__main__')\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True
  )
  assert done.stdout.split() == [f"prompt_tuning.{verb}", "False"]

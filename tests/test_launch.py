"""Launchers: linted, dry-run, and run with a stand-in for Python."""

import os
import pathlib
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
import types

import pytest

from prompt_tuning.engine import config

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "configs" / "launch"
SCRIPTS = sorted(FOLDER.glob("*.sh"))
FLAGS = ["--gin_file=configs/demo/prompt_tuning.gin", "--gin.MODEL_DIR='runs/a b'"]
LINE = ["python", "-m", "prompt_tuning.train", *FLAGS]
SETTINGS = {
  "one_gpu.sh": {"GPU": "3"},
  "multi_gpu.sh": {},
  "slurm.sh": {"NODES": "2", "GPUS_PER_NODE": "8", "PARTITION": "long"},
  "tpu_vm.sh": {"TPU_NAME": "mine", "ZONE": "z", "DIRECTORY": "my dir"},
  "gke_xpk.sh": {"CLUSTER": "c", "WORKLOAD": "w", "TPU_TYPE": "v4-8", "IMAGE": "i:1"},
  "xmanager_launch.py": {"IMAGE": "i:1", "RESOURCE": "a100=8"},
}
# Launchers that hand the line to another shell, and the flag in which they do.
INSIDE = {"slurm.sh": "--wrap", "tpu_vm.sh": "--command", "gke_xpk.sh": "--command"}


def run(name, *flags, **settings):
  start = [sys.executable] if name.endswith(".py") else ["bash"]
  kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
  return subprocess.run(
    [*start, str(FOLDER / name), *flags],
    env={**kept, **settings},
    capture_output=True,
    text=True,
    timeout=60,
  )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_lint(script):
  subprocess.run(["bash", "-n", str(script)], check=True)
  assert os.access(script, os.X_OK) or script.name == "common.sh"
  if shutil.which("shellcheck"):
    subprocess.run(["shellcheck", "-x", str(script)], check=True, cwd=FOLDER)


def test_every_launcher_is_described_and_tested():
  names = {path.name for path in FOLDER.iterdir() if path.suffix in (".sh", ".py")}
  assert names - {"common.sh"} == set(SETTINGS)
  page = (FOLDER / "README.md").read_text()
  assert all(f"| `{name}` |" in page for name in SETTINGS)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_dry_run_prints_the_line(name):
  done = run(name, "--dry-run", *FLAGS, **SETTINGS[name])
  assert done.returncode == 0, done.stderr
  words = shlex.split(done.stdout)
  if name not in INSIDE:
    assert words[-len(LINE) :] == LINE
    assert words[: -len(LINE)] in ([], ["env", "CUDA_VISIBLE_DEVICES=3"])
    return
  [inner] = [w for w in words if w.startswith(INSIDE[name] + "=")]
  inside = shlex.split(inner.partition("=")[2])
  before = {"slurm.sh": ["srun"], "tpu_vm.sh": ["cd", "my dir", "&&"]}.get(name, [])
  assert inside == [*before, *LINE, "--multiprocess"]
  known = {"slurm.sh": "--ntasks-per-node=8", "tpu_vm.sh": "--worker=all"}
  assert known.get(name, "--docker-image=i:1") in words


def test_training_takes_the_line():
  config.parse_flags(FLAGS, "prompt_tuning.train")
  assert config.macro("MODEL_DIR") == "runs/a b"


@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_missing(name):
  done = run(name, "--dry-run", **SETTINGS[name])
  assert done.returncode == 2 and "at least --gin_file" in done.stderr
  if name in ("tpu_vm.sh", "gke_xpk.sh", "xmanager_launch.py"):
    done = run(name, "--dry-run", *FLAGS)
    assert done.returncode == 2 and done.stderr.startswith("error: set ")
    assert not done.stdout


@pytest.mark.parametrize("name", [script.name for script in SCRIPTS[1:]])
def test_help(name):
  done = run(name, "--help")
  assert done.returncode == 0 and f"configs/launch/{name} [--dry-run]" in done.stdout


def test_processes_of_a_dry_run():
  done = run("multi_gpu.sh", "--dry-run", *FLAGS, PROCESSES="2")
  for i, line in enumerate(done.stdout.splitlines()):
    words = shlex.split(line)
    assert words[-len(LINE) :] == LINE
    assert f"JAX_PROCESS_ID={i}" in words and "JAX_NUM_PROCESSES=2" in words
  assert i == 1


@pytest.fixture
def stand_in(tmp_path):
  """A program in Python's place: says that it runs, waits, and ends with a code."""
  path = tmp_path / "stand_in.sh"
  path.write_text(
    "#!/usr/bin/env bash\ntrap 'exit 143' TERM\n"
    'touch "$NOTES/${JAX_PROCESS_ID:-alone}"\n'
    "for ((i = 0; i < ${WAIT:-0}; i++)); do sleep 0.05; done\n"
    "exit $((${CODE:-0} * ${JAX_PROCESS_ID:-1}))\n"
  )
  path.chmod(0o755)
  return path


# The process of index i ends with i times the code, a single one with the code itself.
@pytest.mark.parametrize(("processes", "code"), [("1", 7), ("3", 7), ("2", 0)])
def test_the_code_of_training_is_the_launcher_s(stand_in, tmp_path, processes, code):
  notes = {"NOTES": str(tmp_path), "CODE": str(code), "PROCESSES": processes}
  done = run("multi_gpu.sh", *FLAGS, PYTHON=str(stand_in), **notes)
  assert done.returncode == code, done.stderr
  ran = {path.name for path in tmp_path.iterdir()} - {stand_in.name}
  assert ran == ({"alone"} if processes == "1" else set("012"[: int(processes)]))


def test_sigterm_reaches_every_process(stand_in, tmp_path):
  settings = {"PYTHON": str(stand_in), "NOTES": str(tmp_path), "WAIT": "400"}
  process = subprocess.Popen(
    ["bash", str(FOLDER / "multi_gpu.sh"), *FLAGS],
    env={**os.environ, "PROCESSES": "2", **settings},
  )
  end = time.monotonic() + 60
  while not all((tmp_path / i).exists() for i in "01"):
    assert time.monotonic() < end
    time.sleep(0.02)
  process.send_signal(signal.SIGTERM)
  assert process.wait(timeout=15) == 143


class Recorder:
  """Stands for XManager: remembers the job that is added to it."""

  def __init__(self):
    self.jobs = []

  def __enter__(self):
    return self

  def __exit__(self, *error):
    return None

  def package(self, packageables):
    return packageables

  def add(self, job):
    self.jobs.append(job)


def test_xmanager_is_given_the_line(monkeypatch):
  recorder, record = Recorder(), types.SimpleNamespace

  class Vertex(record):
    Spec = record

    def __init__(self, requirements):
      super().__init__(requirements=requirements)

  xm = types.ModuleType("xm")
  for name in ("Job", "JobRequirements", "Packageable", "PythonContainer"):
    setattr(xm, name, record)
  xm.ModuleName = str
  xm_local = types.ModuleType("xm_local")
  xm_local.Vertex = Vertex
  xm_local.create_experiment = lambda experiment_title: recorder
  package = types.ModuleType("xmanager")
  package.xm, package.xm_local = xm, xm_local
  for name, value in SETTINGS["xmanager_launch.py"].items():
    monkeypatch.setenv(name, value)
  monkeypatch.setitem(sys.modules, "xmanager", package)
  runpy.run_path(str(FOLDER / "xmanager_launch.py"))["main"](["launch", *FLAGS])
  [job] = recorder.jobs
  assert job.args == FLAGS and job.executor.requirements.a100 == 8
  assert job.executable.executable_spec.entrypoint == "prompt_tuning.train"

"""Kills a training process at random moments and lets it go on each time.

  PYTHONPATH=. python benchmarks/faults.py --kills=30 --output=benchmarks/faults.md

Each kill is a SIGKILL, aimed at one of the phases compile, step, save and evaluate
(which writes the product too). Afterwards the run must be, bit for bit, the one that
nobody killed: product, metrics, last checkpoint. The killed processes are forks of one
that has imported everything and owns no devices yet, so that a kill costs seconds.
"""

import argparse
import json
import os
import pathlib
import random
import re
import signal
import sys
import tempfile
import time
import traceback

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import numpy as np

from prompt_tuning import train
from prompt_tuning.backbones.t5 import files
from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.backbones.t5.config import T5Config
from prompt_tuning.engine import config, log
from prompt_tuning.engine.explain import bindings

ROOT = pathlib.Path(__file__).resolve().parent.parent
PHASES = ("compile", "step", "save", "evaluate")
RECIPE = """include "gin/train.gin"
include "gin/tasks/demo_sentiment.gin"
include "gin/methods/ipt_mlp.gin"
TASK_FEATURE_LENGTHS = {"inputs": 48, "targets": 4}
TRUNCATE = True
PROMPT_LENGTH = 4
BATCH_SIZE = 8
EVAL_BATCH_SIZE = 16
EVAL_EXAMPLES = 24
SAVE_PERIOD = 10
EVAL_PERIOD = 30
LOG_PERIOD = 8
BEST_METRIC = "loss"
LEARNING_RATE = 0.05
DROPOUT_RATE = 0.1
TENSORBOARD = False
"""
SAVE_PERIOD = 10


def prepare(folder: pathlib.Path, steps: int) -> None:
  """A tiny backbone and the recipe; a fork makes them, so that no device opens here."""

  def make() -> None:
    backbone = T5(T5Config(8192, 16, 2, 8, 32, 1, 1))
    params = jax.jit(backbone.init)(jax.random.key(0))
    vocabulary = ROOT / "prompt_tuning" / "demo" / "mini" / "spiece.model"
    files.save(folder / "tiny", backbone, params, vocabulary)

  assert wait(forked(make, folder / "log")) == 0, (folder / "log").read_text()
  text = f"{RECIPE}INITIAL_CHECKPOINT_PATH = '{folder}/tiny'\nTRAIN_STEPS = {steps}\n"
  (folder / "recipe.gin").write_text(text)


def forked(function, output: pathlib.Path) -> int:
  """Runs a function in a process of its own; its id."""
  sys.stdout.flush()
  child = os.fork()
  if child:
    return child
  code = 1
  try:
    with open(output, "a") as file:
      os.dup2(file.fileno(), 1)
      os.dup2(file.fileno(), 2)
    function()
    code = 0
  except SystemExit as stop:
    code = stop.code if isinstance(stop.code, int) else 1
  except BaseException:
    traceback.print_exc()
  finally:
    sys.stdout.flush()
    os._exit(code)


def wait(child: int) -> int:
  """The exit code of a process, negative for a signal."""
  return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def start(folder: pathlib.Path, name: str, slow: float = 0.0) -> int:
  """Trains MODEL_DIR folder/name; a little time between steps gives kills a place."""

  def run() -> None:
    settings = {
      "jax_enable_compilation_cache": True,
      "jax_compilation_cache_dir": str(folder / "cache"),
      "jax_persistent_cache_min_compile_time_secs": 0.0,
      "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for key, value in settings.items():
      jax.config.update(key, value)
    step = log.Log.step

    def slower(self, number: int) -> None:
      time.sleep(slow)
      step(self, number)

    log.Log.step = slower
    argv = [f"--gin_file={folder}/recipe.gin", f"--gin.MODEL_DIR='{folder}/{name}'"]
    config.run_verb(train.train, argv)

  os.chdir(ROOT)
  return forked(run, folder / f"{name}.log")


def newest(folder: pathlib.Path) -> int:
  """The step of the newest whole checkpoint; 0 without one."""
  names = folder.glob("checkpoints/*")
  return max([int(path.name) for path in names if path.name.isdigit()], default=0)


def reached(folder: pathlib.Path) -> int:
  """The last step that metrics.jsonl speaks of."""
  try:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return max([json.loads(line)["step"] for line in lines], default=0)
  except (OSError, ValueError):
    return 0


def begun(folder: pathlib.Path, phase: str, before: int, lines: int, old: set) -> bool:
  """Whether a process has come to a phase."""
  if phase == "compile":
    return (folder / ".lock").exists()
  if phase == "save":
    return bool(unfinished(folder) - old)
  try:
    now = len((folder / "metrics.jsonl").read_text().splitlines())
  except OSError:
    return False
  if phase == "evaluate":
    return reached(folder) > before and reached(folder) % 30 == 0
  return now > lines


def unfinished(folder: pathlib.Path) -> set[str]:
  """Checkpoints that are being written, or that a kill left half written."""
  return {path.name for path in folder.glob("checkpoints/*") if "tmp" in path.name}


def kill(child: int, folder: pathlib.Path, phase: str, draw: random.Random) -> bool:
  """Kills a process soon after it has come to a phase; False if it ended before."""
  before, lines, old = reached(folder), 0, unfinished(folder)
  if (folder / "metrics.jsonl").exists():
    lines = len((folder / "metrics.jsonl").read_text().splitlines())
  while not begun(folder, phase, before, lines, old):
    if os.waitpid(child, os.WNOHANG)[0]:
      return False
    time.sleep(0.001)
  time.sleep(draw.uniform(0, {"compile": 2.0, "save": 0.03}.get(phase, 0.1)))
  os.kill(child, signal.SIGKILL)
  return wait(child) == -signal.SIGKILL


def last_state(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """Arrays of the last checkpoint by name."""
  import orbax.checkpoint as ocp

  path = folder / "checkpoints" / str(newest(folder)) / "default"
  tree = ocp.StandardCheckpointer().restore(path.absolute())
  return {
    jax.tree_util.keystr(keys): np.asarray(leaf)
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def compare(folder: pathlib.Path) -> list[str]:
  """What differs between the run that was killed and the one that was not."""
  left, right = folder / "whole", folder / "killed"
  differ = [
    name
    for name in ("prompt/prompt.safetensors", "metrics.jsonl", "model-info.txt")
    if (left / name).read_bytes() != (right / name).read_bytes()
  ]
  cards = [json.loads((x / "prompt" / "card.json").read_text()) for x in (left, right)]
  pairs = zip(cards, ("whole", "killed"), strict=True)
  # As bindings: gin breaks a line where a folder's name is long.
  texts = [
    {key: text.replace(name, "") for key, text in bindings(card.pop("gin")).items()}
    for card, name in pairs
  ]
  if cards[0] != cards[1] or texts[0] != texts[1]:
    differ.append("prompt/card.json")
  one, other = last_state(left), last_state(right)
  if set(one) != set(other):
    differ.append("names in the last checkpoint")
  differ += [
    name
    for name in one.keys() & other.keys()
    if not np.array_equal(one[name], other[name])
  ]
  left_over = [path.name for path in right.glob(".*")]
  return differ + [f"left behind: {name}" for name in left_over]


def run(folder: pathlib.Path, kills: int, seed: int, slow: float = 0.02) -> list[dict]:
  """Kills and restarts until there were as many kills, then lets the run end.

  Returns:
    One record a kill: phase, steps that were spoken of and saved, steps lost.

  Raises:
    AssertionError: if a restarted run fails, loses more than it may, or ends otherwise
      than the run that nobody killed.
  """
  draw = random.Random(seed)
  prepare(folder, 40 + 10 * kills)
  assert wait(start(folder, "whole")) == 0, (folder / "whole.log").read_text()[-3000:]
  killed, records = folder / "killed", []
  while len(records) < kills:
    phase = PHASES[len(records) % len(PHASES)]
    child = start(folder, "killed", slow)
    if not kill(child, killed, phase, draw):
      # It ended first: begin again with an empty folder.
      os.rename(killed, folder / f"ended-{len(records)}-{time.monotonic_ns()}")
      continue
    saved, spoken = newest(killed), reached(killed)
    records.append({"phase": phase, "reached": spoken, "saved": saved})
    # A save is written beside the steps of the next period.
    assert spoken - saved <= 2 * SAVE_PERIOD, records[-1]
  assert wait(start(folder, "killed")) == 0, (folder / "killed.log").read_text()[-3000:]
  text = (folder / "killed.log").read_text()
  for record in records:
    if record["saved"]:
      assert f"Resumed from step {record['saved']}." in text, record
  return records


def machine() -> str:
  """Where the figures come from."""
  names = re.findall(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
  cores = len(os.sched_getaffinity(0))
  return f"{names[0]}, {cores} of its cores used, jax {jax.__version__}"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--kills", type=int, default=30)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--output", help="file for the table")
  args = parser.parse_args()
  begin = time.monotonic()
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    records = run(folder, args.kills, args.seed)
    differ = compare(folder)
  lines = ["| kill | phase | last step told | resumed from |", "|---|---|---|---|"]
  lines += [
    f"| {i} | {one['phase']} | {one['reached']} | {one['saved']} |"
    for i, one in enumerate(records, 1)
  ]
  verdict = "equal bit for bit" if not differ else f"DIFFERENT: {differ}"
  lines.append("")
  lines.append(
    f"{len(records)} kills, {time.monotonic() - begin:.0f} s. Product, metrics and the "
    f"last checkpoint against the run that nobody killed: {verdict}."
  )
  print("\n".join(lines))
  if args.output:
    command = f"PYTHONPATH=. python benchmarks/faults.py --kills={args.kills}"
    head = ["# Kills at random moments", "", f"    {command} --output={args.output}"]
    text = "\n".join([*head, "", f"{machine()}.", "", *lines])
    pathlib.Path(args.output).write_text(text + "\n")
  raise SystemExit(bool(differ))


if __name__ == "__main__":
  main()

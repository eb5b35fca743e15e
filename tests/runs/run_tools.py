"""A short run, and what its folder holds."""

import json
import pathlib

import process_tools

from prompt_tuning import train
from prompt_tuning.engine import (
  config,
)

NUMBERS = {"TRAIN_STEPS": 6, "SAVE_PERIOD": 0, "EVAL_PERIOD": 3, "LOG_PERIOD": 2}
# Few steps: 6, evaluated at 3 and 6, saved at the end alone.
RECIPE = process_tools.RECIPE.replace("gin/methods", "gin/schedules/warmup_linear.gin"
  '"\ninclude "gin/methods', 1)  # fmt: skip
RECIPE += "WARMUP_STEPS = 1\n"
RECIPE += "".join(f"{name} = {value}\n" for name, value in NUMBERS.items())


def start(work, name, *flags):
  """Trains MODEL_DIR work/name; what the verb gives."""
  given = [f"--gin_file={work}/recipe.gin", f"--gin.MODEL_DIR='{work}/{name}'"]
  return config.run_verb(train.train, [*given, *(f"--gin.{flag}" for flag in flags)])


def content(folder: pathlib.Path) -> dict[str, tuple[bytes, int]]:
  """Bytes and time of every file."""
  return {
    str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
    for path in folder.rglob("*")
    if path.is_file()
  }


def lines(folder):
  return [json.loads(line) for line in (folder / "metrics.jsonl").open()]

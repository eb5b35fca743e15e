"""Files of a finished run changed at random, then the same command again.

It goes on, or it is refused in a sentence; nothing else happens, and what was not
damaged stays as it was.
"""

import os
import pathlib
import random
import shutil

import fuzz_tools
import process_tools
import pytest

from prompt_tuning import train
from prompt_tuning.engine import config

CASES = 600 if os.environ.get("PROMPT_TUNING_THOROUGH") else 30
# Those that a run reads again; one of each kind, so that a few cases meet them all.
FILES = (
  "metrics.jsonl",
  "config.gin",
  "run.json",
  ".lock",
  "prompt/card.json",
  "prompt/prompt.safetensors",
  "checkpoints/best/card.json",
  "checkpoints/6/_CHECKPOINT_METADATA",
  "checkpoints/6/default/_METADATA",
  "checkpoints/6/default/manifest.ocdbt",
  "checkpoints/6/default/_sharding",
  "checkpoints/3/_CHECKPOINT_METADATA",
)
LATER = ("TRAIN_STEPS", "SAVE_PERIOD", "EVAL_PERIOD", "LOG_PERIOD")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_folder, cache):
  """(MODEL_DIR of a finished run of 6 steps, its flags without MODEL_DIR)."""
  work = tmp_path_factory.mktemp("runs")
  process_tools.write_task(work, tiny_folder)
  given = [f"--gin_file={work}/recipe.gin", "--gin.TRAIN_STEPS=6"]
  given += [f"--gin.{name}=3" for name in LATER[1:]]
  config.run_verb(train.train, [*given, f"--gin.MODEL_DIR='{work}/run'"])
  (work / "run" / ".lock").write_text('{"pid": 1, "host": "here"}')
  return work / "run", given


def damage(folder: pathlib.Path, rng: random.Random) -> str:
  """Changes one file of a run; what was done to which."""
  path = folder / rng.choice(FILES)
  kind = rng.choice(fuzz_tools.KINDS)
  if kind in ("delete", "folder"):
    path.unlink()
    if kind == "folder":
      path.mkdir()
  elif kind == "swap":
    path.write_bytes((folder / rng.choice(FILES)).read_bytes())
  else:
    path.write_bytes(fuzz_tools.CHANGES[kind](path.read_bytes(), rng, path))
  return f"{kind} of {path.relative_to(folder)}"


@pytest.mark.slow
def test_a_damaged_run_goes_on_or_says_why(whole, tmp_path, capsys):
  found, given = whole
  ended = {"refused": 0, "went on": 0}
  for number in range(CASES):
    rng = random.Random(f"runs {number}")
    folder = tmp_path / "run"
    shutil.copytree(found, folder)
    what = damage(folder, rng)
    try:
      config.run_verb(train.train, [*given, f"--gin.MODEL_DIR='{folder}'"])
      ended["went on"] += 1
      assert "finished at step 6" in capsys.readouterr().out or (
        (folder / "prompt" / "card.json").is_file()
      ), what
    except SystemExit as stop:
      said = capsys.readouterr().err.strip().splitlines()
      assert stop.code == 2, what
      assert said[-1].startswith("error: ") and len(said[-1]) < 2000, (what, said)
      ended["refused"] += 1
    except Exception as error:
      raise AssertionError(f"{what}, case {number}") from error
    shutil.rmtree(folder)
  assert min(ended.values()) > CASES // 20, ended

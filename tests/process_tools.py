"""A toy run for several processes, and a process that writes down what it reads.

As a program: `process_tools.py FOLDER NUMBER STOP VERB FLAGS...` runs `VERB` (train or
eval) and leaves FOLDER/read-NUMBER.json: the input ids of each training example and
each evaluated one that this process laid out. At step STOP it sends itself SIGTERM; 0
for never. JAX looks for the signal once a second, so it takes its time from then on.
"""

import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import threading
import time

import quick

ROOT = pathlib.Path(__file__).resolve().parent.parent
TRAIN, VALIDATION, BATCH = 20, 10, 8
RECIPE = """include "gin/train.gin"
include "gin/tasks/files.gin"
include "gin/methods/prompt_tuning.gin"
INPUTS = "review: {text}"
LABELS = ("negative", "positive")
TASK_FEATURE_LENGTHS = {"inputs": 24, "targets": 4}
PROMPT_LENGTH = 4
BATCH_SIZE = 8
EVAL_BATCH_SIZE = 8
TRAIN_STEPS = 24
SAVE_PERIOD = 5
EVAL_PERIOD = 6
LOG_PERIOD = 3
BEST_METRIC = "loss"
LEARNING_RATE = 0.05
SEED = 3
TENSORBOARD = False
"""
# What lies in MODEL_DIR behind a run of such a recipe.
LEFT = {"checkpoints", "config.gin", "learning-curve.png", "metrics.jsonl"}
LEFT |= {"model-info.txt", "prompt", "run.json"}
# Frozen weights, the prompt and its slots in slices that lie in several processes.
DIVIDED = ["--gin_file=gin/sharding/fully_sharded.gin", "--gin.NUM_PARTITIONS=2"]
DIVIDED += ["--gin.TRAINABLE_RULES=%AXIS_RULES"]


def write_task(
  folder: pathlib.Path, backbone: str, recipe: str = RECIPE, train: int = TRAIN
) -> None:
  """Writes train.tsv (so many rows), validation.tsv and recipe.gin."""
  draw = random.Random(0)
  words = {"positive": "good fine lovely great".split(), "negative": "bad dull".split()}

  def rows(count):
    for i in range(count):
      label = ("negative", "positive")[i % 2]
      yield f"a {draw.choice(words[label])} film number {i}\t{label}"

  for name, count in (("train", train), ("validation", VALIDATION)):
    text = "\n".join(["text\tlabel", *rows(count)]) + "\n"
    (folder / f"{name}.tsv").write_text(text)
  (folder / "recipe.gin").write_text(
    f"{recipe}INITIAL_CHECKPOINT_PATH = '{backbone}'\nDATA_DIR = '{folder}'\n"
    "TRAIN_FILE = 'train.tsv'\nVALIDATION_FILE = 'validation.tsv'\n"
  )


def free_port() -> int:
  """A port that nobody listens on."""
  with socket.socket() as found:
    found.bind(("localhost", 0))
    return found.getsockname()[1]


def start(
  folder: pathlib.Path,
  count: int,
  flags: list[str],
  stop: int = 0,
  verb: str = "train",
  devices: int = 4,
) -> list[subprocess.Popen]:
  """Starts `count` processes that share some virtual devices; the last may stop."""
  address = f"localhost:{free_port()}"
  options = f"--xla_force_host_platform_device_count={devices // count}"
  options += f" {quick.FLAGS}"
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": options}
  environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *sys.path])
  found = []
  for number in range(count):
    own = [str(folder), str(number), str(stop if number == count - 1 else 0), verb]
    join = [f"--coordinator_address={address}", f"--process_count={count}"]
    join.append(f"--process_index={number}")
    with open(folder / f"log-{number}", "w") as log:
      command = [sys.executable, __file__, *own, *flags, *join]
      found.append(
        subprocess.Popen(
          command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
      )
  return found


def codes(processes: list[subprocess.Popen], timeout: float = 400) -> list[int]:
  """Waits for all of them; none outlives this call."""
  try:
    return [process.wait(timeout) for process in processes]
  finally:
    for process in processes:
      process.kill()
      process.wait()


def read(folder: pathlib.Path, count: int) -> list[dict[str, list]]:
  """What each process laid out: {"train": ids in order, "eval": ids in order}."""
  files = [folder / f"read-{number}.json" for number in range(count)]
  return [json.loads(file.read_text()) for file in files]


def main(folder: str, number: str, stop: str, verb: str, *flags: str) -> None:
  from prompt_tuning import eval as eval_verb
  from prompt_tuning import train
  from prompt_tuning.data.features import Layout
  from prompt_tuning.engine import config, log, summary

  # The words in front of a run lay out an example too.
  summary.opening = lambda *given: ""
  laid_out = {"train": [], "eval": []}
  convert, step = Layout.convert, log.Silent.step

  def recorded(self, example):
    # Training batches are made in a thread of their own.
    own = threading.current_thread() is threading.main_thread()
    laid_out["eval" if own else "train"].append([int(i) for i in example["inputs"]])
    return convert(self, example)

  def told(self, done):
    step(self, done)
    if done == int(stop):
      os.kill(os.getpid(), signal.SIGTERM)
    if 0 < int(stop) <= done:
      time.sleep(2)

  Layout.convert, log.Silent.step = recorded, told
  function = train.train if verb == "train" else eval_verb.evaluate_prompt
  try:
    config.run_verb(function, list(flags))
  finally:
    pathlib.Path(folder, f"read-{number}.json").write_text(json.dumps(laid_out))


if __name__ == "__main__":
  main(*sys.argv[1:])

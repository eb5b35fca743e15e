"""What int8 weights of a frozen backbone cost in accuracy, and save in bytes.

  python benchmarks/int8_weights.py [--backbone=mini] [--steps=300] [--json=FILE]

Logits of the embedded test sentences, unprompted, beside those of the weights as they
are stored; then accuracy in % on the embedded sentiment task, unprompted and with a
plain prompt tuned on either and answered by each (`--steps=0` leaves prompts out). No
seconds are measured.
"""

import argparse
import pathlib
import tempfile
from typing import Any

import jax
import numpy as np
import timing

import prompt_tuning as pt
from prompt_tuning import train
from prompt_tuning.data.features import Layout, pad
from prompt_tuning.engine import config, examples

HELD = (None, "bfloat16", "int8")
TASK = "gin/tasks/demo_sentiment.gin"
RECIPE = "configs/demo/prompt_tuning.gin"


def words(held: str | None) -> str:
  return "as stored" if held is None else held


def answered(model: Any, prompt: Any, task: Any) -> float:
  """Accuracy on the test split, in %."""
  rows = task.examples("test")
  texts = [row["inputs"] for row in rows]
  found, _ = pt.classify(model, prompt, texts, task.labels)
  return task.score(found, "test")["accuracy"]


def logits(model: Any, task: Any) -> np.ndarray:
  """Of the real target positions of the test split, without a prompt."""
  rows = examples.read(task, model.loaded.vocabulary, "test")
  layout = Layout(10**6, 10**6).around(rows)
  padded = [pad(layout.convert(row), layout.lengths) for row in rows]
  inputs, targets = (
    np.stack([row[name] for row in padded]) for name in ("inputs", "targets")
  )
  return np.asarray(model.logits(inputs, targets))[targets > 0]


def trained(held: str | None, args: Any) -> Any:
  """A plain prompt, tuned on weights held so."""
  with tempfile.TemporaryDirectory() as folder:
    lines = [f"MODEL_DIR = {folder + '/run'!r}", f"WEIGHTS_DTYPE = {held!r}"]
    lines += [f"TRAIN_STEPS = {args.steps}", f"SEED = {args.seed}"]
    lines += [f"INITIAL_CHECKPOINT_PATH = {args.backbone!r}"]
    config.parse([RECIPE], lines)
    config.call(train.train)
    return pt.load_prompt(folder + "/run")


def main(argv: list[str] | None = None) -> dict[str, Any]:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--json", type=pathlib.Path, help="file for the results")
  parser.add_argument(
    "--backbone", default="mini", help="with the shape of the mini T5"
  )
  parser.add_argument("--steps", type=int, default=300, help="of a prompt; 0 for none")
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args(argv)
  config.parse([TASK], check=False)
  task = config.macro("TASK")
  models = {held: pt.load_model(args.backbone, weights_dtype=held) for held in HELD}
  plain = logits(models[None], task)
  prompts = {held: trained(held, args) for held in (None, "int8") if args.steps}
  rows = []
  for held, model in models.items():
    leaves = jax.tree.leaves(model.loaded.params)
    found = logits(model, task)
    row = {
      "weights": words(held),
      "megabytes": sum(leaf.nbytes for leaf in leaves) / 1e6,
      "logits_max": float(np.abs(found - plain).max()),
      "logits_rms": float(np.sqrt(np.square(found - plain).mean())),
      "same_best_%": 100 * float((found.argmax(-1) == plain.argmax(-1)).mean()),
    }
    row["unprompted"] = answered(model, None, task)
    for on, prompt in prompts.items():
      row[f"tuned {words(on)}"] = answered(model, prompt, task)
    rows.append(row)
  return timing.finish(args, rows, {"logits_std": float(plain.std())})


if __name__ == "__main__":
  main()

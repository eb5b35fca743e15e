"""Runs recipes of configs/real/ over tasks, methods and seeds, and prints the table.

  python benchmarks/real_data.py --data=DIR [--tasks=sst2,trec_16shot] [--seeds=3]
    [--methods=prompt_tuning] [--output=runs/real] [--json=FILE] [--set NAME=VALUE ...]

A task with the ending _16shot trains and validates on 16 examples of each label; its
seeds draw other examples. The best validation evaluation decides; the test split
(validation where the labels of the test split are hidden) is scored once with it. A run
whose row exists is kept, so that several processes can share one output folder.
"""

import argparse
import collections
import json
import pathlib
import statistics
import time
from typing import Any

import jax

from prompt_tuning import eval as eval_verb
from prompt_tuning import train as train_verb
from prompt_tuning.engine import config, product

TASKS = ("sst2", "mr", "mpqa", "trec", "rte", "ag_news")
# The draws of Gao et al., 2021, "Making Pre-trained Language Models Better Few-shot
# Learners".
SHOT_SEEDS = (13, 21, 42, 87, 100)
METHODS = (
  "unprompted",
  "prompt_tuning",
  "ipt_random",
  "ipt_mlp",
  "ipt_rnn",
  "ipt_cnn",
  "s_idpg_phm",
  "s_idpg_phm_embeddings",
  "full_fine_tuning",
)


def files(task: str, method: str | None = None) -> list[str]:
  """The gin files of one cell, or of a task alone."""
  whole = task.removesuffix("_16shot")
  names = ["base", whole] if method is None else ["base", whole, method]
  found = [f"configs/real/{name}.gin" for name in names]
  return found if whole == task else [*found, f"gin/tasks/{task}.gin"]


def sources(task: str, data: str, seed: int) -> list[str]:
  """Bindings that say where a task's examples come from."""
  found = [f"DATA_DIR = {data!r}"]
  if task.endswith("_16shot"):
    found.append(f"SHOT_SEED = {SHOT_SEEDS[seed]}")
  return found


def run(
  task: str, method: str, seed: int, data: str, output: pathlib.Path, extra: list[str]
) -> dict[str, Any]:
  """One row: trained, validation, test, seconds."""
  folder = output / task / f"{method}-{seed}"
  row_file = folder / "row.json"
  if row_file.is_file():
    return json.loads(row_file.read_text())
  bindings = [*sources(task, data, seed), f"MODEL_DIR = {str(folder)!r}"]
  bindings.append(f"SEED = {seed}")
  start, used = time.monotonic(), time.process_time()
  config.parse(files(task, method), [*bindings, *extra])
  found, backbone = config.macro("TASK"), config.macro("INITIAL_CHECKPOINT_PATH")
  fitted = config.call(train_verb.train)
  seconds, used = time.monotonic() - start, time.process_time() - used
  split = "test" if "test" in found.splits else "validation"
  prompt = folder / "prompt" if (folder / "prompt").is_dir() else None
  config.parse(
    ["gin/eval.gin", f"gin/tasks/{task}.gin", "gin/outputs/choice.gin"],
    [
      *sources(task, data, seed),
      f"EVAL_DIR = {str(folder / 'eval')!r}",
      f"SPLIT = {split!r}",
      f"PROMPT_DIR = {str(prompt) if prompt else None!r}",
      f"INITIAL_CHECKPOINT_PATH = {backbone!r}",
      "EVAL_BATCH_SIZE = 128",
    ],
  )
  scores = config.call(eval_verb.evaluate_prompt)
  row = {
    "task": task,
    "method": method,
    "seed": seed,
    "trained": product.load(prompt).parameters if prompt else 0,
    "validation": (fitted.best.scores or {}).get("accuracy"),
    "split": split,
    "score": scores["accuracy"],
    "steps": fitted.best.step,
    "seconds": seconds,
    "processor_seconds": used,
  }
  row_file.write_text(json.dumps(row) + "\n")
  return row


def majority(task: str, data: str) -> float:
  """Accuracy of the most frequent training label on the scored split."""
  config.parse(files(task), sources(task, data, 0), check=False)
  found = config.macro("TASK")
  split = "test" if "test" in found.splits else "validation"
  often = collections.Counter(e["targets"] for e in found.examples("train"))
  label = often.most_common(1)[0][0]
  targets = [e["targets"] for e in found.examples(split)]
  return 100 * targets.count(label) / len(targets)


def table(rows: list[dict[str, Any]], tasks: list[str], majorities: Any) -> str:
  """A Markdown table: a row a method, mean and spread over seeds a task.

  The last column is the mean processor time of a run, compilation and evaluations
  included: unlike wall time, it hardly depends on what else the machine does.
  """
  cells = collections.defaultdict(list)
  for row in rows:
    cells[row["method"], row["task"]].append(row["score"])
  methods = list(dict.fromkeys(row["method"] for row in rows))
  lines = [
    f"| method | trained | {' | '.join(tasks)} | mean | processor s |",
    f"|---|---:|{'---:|' * (len(tasks) + 2)}",
    _line("majority class", 0, [[majorities[task]] for task in tasks], 0),
  ]
  for method in methods:
    own = [row for row in rows if row["method"] == method]
    trained = max(row["trained"] for row in own)
    used = statistics.mean(row["processor_seconds"] for row in own)
    lines.append(_line(method, trained, [cells[method, task] for task in tasks], used))
  return "\n".join(lines)


def _line(name: str, trained: int, found: list[list[float]], used: float) -> str:
  words = []
  for scores in found:
    if not scores:
      words.append("-")
    elif len(scores) == 1:
      words.append(f"{scores[0]:.1f}")
    else:
      words.append(f"{statistics.mean(scores):.1f} ± {statistics.stdev(scores):.1f}")
  whole = [statistics.mean(scores) for scores in found if scores]
  mean = f"{statistics.mean(whole):.1f}" if len(whole) == len(found) else "-"
  return f"| {name} | {trained:,} | {' | '.join(words)} | {mean} | {used:.0f} |"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--data", required=True)
  parser.add_argument("--tasks", default=",".join(TASKS))
  parser.add_argument("--methods", default=",".join(METHODS))
  parser.add_argument("--seeds", type=int, default=1)
  parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/real"))
  parser.add_argument("--json", type=pathlib.Path)
  parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
  args = parser.parse_args()
  tasks, methods = args.tasks.split(","), args.methods.split(",")
  extra = [item.replace("=", " = ", 1) for item in args.set]
  rows = []
  for task in tasks:
    for method in methods:
      seeds = 1 if method == "unprompted" else args.seeds
      for seed in range(seeds):
        rows.append(run(task, method, seed, args.data, args.output, extra))
        print(json.dumps(rows[-1]), flush=True)
  majorities = {task: majority(task, args.data) for task in tasks}
  print(f"\naccuracy in %, {jax.devices()[0].device_kind}\n")
  print(table(rows, tasks, majorities))
  if args.json:
    args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
  main()

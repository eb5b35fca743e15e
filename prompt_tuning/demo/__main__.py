"""The main job end to end: tune the mini T5 on the embedded sentences, print a table.

  python -m prompt_tuning.demo [--output=runs/demo]

Four recipes of `configs/demo/` are trained and evaluated on the test split: the model
as it is, a plain prompt, an instance-conditioned prompt, full fine-tuning.
"""

if __name__ == "__main__":
  # Before anything slow is imported.
  from prompt_tuning.engine import early
  from prompt_tuning.terminal import usage

  usage.show("demo")
  early.begin("prompt_tuning.demo")

import json
import logging
import pathlib
import sys
import time
from typing import Any

import jax

from prompt_tuning import eval as eval_verb
from prompt_tuning import train as train_verb
from prompt_tuning.core import files as core_files
from prompt_tuning.engine import compilation, config, ended, flags, product

# How a table of ours begins, which a later demonstration replaces.
TABLE = core_files.begins(b'[\n  {\n    "method"')
RUNS = (
  ("unprompted", "the frozen model as it is"),
  ("prompt_tuning", "plain prompt"),
  ("instance", "instance-conditioned prompt"),
  ("full_fine_tuning", "full fine-tuning"),
)


def run(name: str, folder: pathlib.Path) -> dict[str, Any]:
  """Trains one recipe, evaluates it on the test split, returns its row."""
  model_dir = folder / name
  recipe = f"configs/demo/{name}.gin"
  start = time.monotonic()
  config.parse([recipe], [f"MODEL_DIR = {str(model_dir)!r}"])
  fitted = config.call(train_verb.train)
  seconds = time.monotonic() - start
  prompt = model_dir / "prompt" if (model_dir / "prompt").is_dir() else None
  bindings = [f"EVAL_DIR = {str(model_dir / 'eval')!r}", "SPLIT = 'test'"]
  bindings.append(f"PROMPT_DIR = {str(prompt)!r}" if prompt else "PROMPT_DIR = None")
  bindings.append("INITIAL_CHECKPOINT_PATH = 'mini'")
  files = ["gin/eval.gin", "gin/tasks/demo_sentiment.gin", "gin/outputs/choice.gin"]
  config.parse(files, bindings)
  scores = config.call(eval_verb.evaluate_prompt)
  row = {
    "method": name,
    "trained": 0,
    "validation": (fitted.best.scores or {}).get("accuracy", float("nan")),
    "test": scores["accuracy"],
    "seconds": seconds,
    "bytes": 0,
  }
  if prompt:
    row["trained"] = product.load(prompt).parameters
    row["bytes"] = (prompt / "prompt.safetensors").stat().st_size
  return row


def table(rows: list[dict[str, Any]]) -> str:
  """The rows as aligned text."""
  head = f"{'method':<32}{'trained':>12}{'validation':>12}{'test':>8}{'seconds':>9}"
  lines = [head + f"{'file':>12}"]
  words = dict(RUNS)
  for row in rows:
    size = f"{row['bytes'] / 1024:,.0f} KiB" if row["bytes"] else "-"
    lines.append(
      f"{words[row['method']]:<32}{row['trained']:>12,}{row['validation']:>12.1f}"
      f"{row['test']:>8.1f}{row['seconds']:>9.0f}{size:>12}"
    )
  return "\n".join(lines)


def main() -> None:
  parser = flags.Parser(description=__doc__.splitlines()[0])
  parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/demo"))
  folder = parser.parse_args().output
  try:
    with ended.in_one_line("The same command goes on."):
      demonstrate(folder)
  except (ValueError, OSError) as error:
    print(f"error: {config.one_line(error)}", file=sys.stderr)
    raise SystemExit(2) from error


def demonstrate(folder: pathlib.Path) -> None:
  """Runs all recipes and prints their table.

  Raises:
    ValueError, OSError: if a run in the folder is another one, or cannot be written.
  """
  core_files.check_replaceable(folder / "table.json", TABLE)
  logging.getLogger("absl").setLevel(logging.ERROR)
  compilation.keep()
  rows = []
  for name, words in RUNS:
    print(f"\n== {words} (configs/demo/{name}.gin)", flush=True)
    rows.append(run(name, folder))
  print("\nSentiment of a sentence (negative, positive), accuracy in %,")
  print(f"{jax.devices()[0].device_kind}; best of validation, then test once:\n")
  print(table(rows))
  text = json.dumps(rows, indent=2) + "\n"
  core_files.write_text(folder / "table.json", text, TABLE)
  best = folder / "instance"
  print(f"\nprompt       {best / 'prompt'}")
  print(f"predictions  {best / 'eval' / 'predictions-test.jsonl'}")
  print(f"curve        {best / 'learning-curve.png'}")


if __name__ == "__main__":
  with ended.at_once():
    main()

"""The main job end to end: tune a model on the embedded sentences, print a table.

  python -m prompt_tuning.demo [--backbone=mini] [--output=runs/demo]

Four recipes of `configs/demo/` are trained and evaluated on the test split: the model
as it is, a plain prompt, an instance-conditioned prompt, full fine-tuning. With
--backbone=smollm2 the first three, of `configs/smollm2/`, on a pretrained decoder.
"""

if __name__ == "__main__":
  # Before anything slow is imported.
  from prompt_tuning.engine import early
  from prompt_tuning.terminal import usage

  usage.show("demo")
  early.begin("prompt_tuning.demo")

import dataclasses
import json
import logging
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax

from prompt_tuning import eval as eval_verb
from prompt_tuning import train as train_verb
from prompt_tuning.core import files as core_files
from prompt_tuning.engine import compilation, config, ended, flags, product

# How a table of ours begins, which a later demonstration replaces.
TABLE = core_files.begins(b'[\n  {\n    "method"')


@dataclasses.dataclass(frozen=True)
class Show:
  """What is shown of a backbone.

  Attributes:
    recipes: folder of them. task: a file of gin/tasks/. runs: recipe -> in words.
    instance: the recipe of the prompt whose files are named at the end.
  """

  recipes: str
  task: str
  runs: Mapping[str, str]
  instance: str


WORDS = {
  "unprompted": "the frozen model as it is",
  "prompt_tuning": "plain prompt",
}
# Backbone -> what is shown of it.
SHOWS = {
  "mini": Show(
    "configs/demo",
    "gin/tasks/demo_sentiment.gin",
    WORDS
    | {
      "instance": "instance-conditioned prompt",
      "full_fine_tuning": "full fine-tuning",
    },
    "instance",
  ),
  "smollm2": Show(
    "configs/smollm2",
    "gin/tasks/demo_review.gin",
    WORDS | {"s_idpg_phm": "instance-conditioned prompt"},
    "s_idpg_phm",
  ),
}


def run(name: str, folder: pathlib.Path, backbone: str = "mini") -> dict[str, Any]:
  """Trains one recipe, evaluates it on the test split, returns its row."""
  show = SHOWS[backbone]
  model_dir = folder / name
  recipe = f"{show.recipes}/{name}.gin"
  start = time.monotonic()
  config.parse([recipe], [f"MODEL_DIR = {str(model_dir)!r}"])
  fitted = config.call(train_verb.train)
  seconds = time.monotonic() - start
  prompt = model_dir / "prompt" if (model_dir / "prompt").is_dir() else None
  bindings = [f"EVAL_DIR = {str(model_dir / 'eval')!r}", "SPLIT = 'test'"]
  bindings.append(f"PROMPT_DIR = {str(prompt)!r}" if prompt else "PROMPT_DIR = None")
  bindings.append(f"INITIAL_CHECKPOINT_PATH = {backbone!r}")
  files = ["gin/eval.gin", show.task, "gin/outputs/choice.gin"]
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


def table(rows: list[dict[str, Any]], backbone: str = "mini") -> str:
  """The rows as aligned text."""
  head = f"{'method':<32}{'trained':>12}{'validation':>12}{'test':>8}{'seconds':>9}"
  lines = [head + f"{'file':>12}"]
  words = SHOWS[backbone].runs
  for row in rows:
    size = f"{row['bytes'] / 1024:,.0f} KiB" if row["bytes"] else "-"
    lines.append(
      f"{words[row['method']]:<32}{row['trained']:>12,}{row['validation']:>12.1f}"
      f"{row['test']:>8.1f}{row['seconds']:>9.0f}{size:>12}"
    )
  return "\n".join(lines)


def main() -> None:
  parser = flags.Parser(description=__doc__.splitlines()[0])
  parser.add_argument("--backbone", choices=tuple(SHOWS), default="mini")
  parser.add_argument("--output", type=pathlib.Path, default=None)
  given = parser.parse_args()
  name = "demo" if given.backbone == "mini" else f"demo_{given.backbone}"
  folder = given.output or pathlib.Path("runs") / name
  try:
    with ended.in_one_line("The same command goes on."):
      demonstrate(folder, given.backbone)
  except (ValueError, OSError) as error:
    print(f"error: {config.one_line(error)}", file=sys.stderr)
    raise SystemExit(2) from error


def demonstrate(folder: pathlib.Path, backbone: str = "mini") -> None:
  """Runs all recipes and prints their table.

  Raises:
    ValueError, OSError: if a run in the folder is another one, or cannot be written.
  """
  core_files.check_replaceable(folder / "table.json", TABLE)
  logging.getLogger("absl").setLevel(logging.ERROR)
  compilation.keep()
  rows = []
  show = SHOWS[backbone]
  for name, words in show.runs.items():
    print(f"\n== {words} ({show.recipes}/{name}.gin)", flush=True)
    rows.append(run(name, folder, backbone))
  print("\nSentiment of a sentence (negative, positive), accuracy in %,")
  print(f"{jax.devices()[0].device_kind}; best of validation, then test once:\n")
  print(table(rows, backbone))
  text = json.dumps(rows, indent=2) + "\n"
  core_files.write_text(folder / "table.json", text, TABLE)
  best = folder / show.instance
  print(f"\nprompt       {best / 'prompt'}")
  print(f"predictions  {best / 'eval' / 'predictions-test.jsonl'}")
  print(f"curve        {best / 'learning-curve.png'}")


if __name__ == "__main__":
  with ended.at_once():
    main()

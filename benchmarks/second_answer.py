"""Milliseconds of the first and the second `classify`, `predict` and `score`.

python benchmarks/second_answer.py [--model=mini] [--texts=1] [--json=FILE]

The first call of a kind compiles its program (nothing is read from a persistent cache);
the others, of other texts of the same length, use what the model keeps.
"""

import argparse
import json
import os
import pathlib
import statistics
import time

os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"

import prompt_tuning as pt

LABELS = ["negative", "positive"]


def milliseconds(call):
  start = time.perf_counter()
  call()
  return 1e3 * (time.perf_counter() - start)


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--model", default="mini")
  parser.add_argument("--texts", type=int, default=1)
  parser.add_argument("--rounds", type=int, default=20)
  parser.add_argument("--steps", type=int, default=8, help="tokens that predict writes")
  parser.add_argument("--prompt_length", type=int, default=20)
  parser.add_argument("--json", type=pathlib.Path)
  flags = parser.parse_args()
  model = pt.load_model(flags.model)
  pairs = [("a good film", "positive"), ("a bad film", "negative")] * 2
  prompt = pt.tune(model, pairs, steps=0, prompt_length=flags.prompt_length)
  texts = ["what a film"] * flags.texts
  calls = {
    "classify": lambda: pt.classify(model, prompt, texts, LABELS),
    "predict": lambda: pt.predict(model, prompt, texts, flags.steps),
    "score": lambda: pt.score(model, prompt, [(text, "positive") for text in texts]),
  }
  found = {}
  print(f"{'call':10} {'first ms':>9} {'second ms':>9} {'median ms':>9}")
  for name, call in calls.items():
    first, *others = [milliseconds(call) for _ in range(1 + flags.rounds)]
    found[name] = {
      "first_ms": first,
      "second_ms": others[0],
      "median_ms": statistics.median(others),
    }
    print(f"{name:10} " + " ".join(f"{value:9.1f}" for value in found[name].values()))
  if flags.json:
    flags.json.write_text(json.dumps({"texts": flags.texts, **found}, indent=2) + "\n")


if __name__ == "__main__":
  main()

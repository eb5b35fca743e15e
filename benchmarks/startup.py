"""From the start of Python to the end of the first step, with and without a cache.

  python benchmarks/startup.py [--backbone=mini] [--method=prompt_tuning]
    [--caches=off,cold,warm] [--json=FILE]

Each row is a process that imports the library, loads a backbone and tunes for one step
on a few sentences, as `import prompt_tuning` offers it: with the persistent compile
cache off, with an empty one, and with the one that the process before it filled.
"""

import argparse
import json
import pathlib
import statistics
import sys
import tempfile
import time
from typing import Any

CACHES = ("off", "cold", "warm")
TEXTS = ("a lovely film", "a dull film", "the food was warm", "the food was cold")
PAIRS = [(text, ("good", "bad")[i % 2]) for i, text in enumerate(TEXTS)]


def run(args: argparse.Namespace) -> dict[str, Any]:
  """One start, in this process: seconds since `args.began` and memory at each stage."""
  found: dict[str, Any] = {"python_s": time.time() - args.began}
  import prompt_tuning as pt

  tune = pt.tune
  found["import_s"] = time.time() - args.began
  import timing

  found["import_mb"] = timing.resident() / 1e6
  model = pt.load_model(args.backbone)
  found["load_s"] = time.time() - args.began
  tune(model, PAIRS, args.method, steps=1, prompt_length=args.prompt, batch_size=4)
  found["first_step_s"] = time.time() - args.began
  found["first_step_mb"] = timing.resident(peak=True) / 1e6
  found["tensorflow"] = "tensorflow" in sys.modules
  return found


def environment(cache: str, folder: str) -> dict[str, str]:
  if cache == "off":
    return {"JAX_ENABLE_COMPILATION_CACHE": "false"}
  return {
    "JAX_ENABLE_COMPILATION_CACHE": "true",
    "JAX_COMPILATION_CACHE_DIR": folder,
  }


def main(argv: list[str] | None = None) -> dict[str, Any]:
  argv = sys.argv[1:] if argv is None else argv
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--backbone", default="mini", help="see prompt_tuning.load_model")
  parser.add_argument("--method", default="prompt_tuning")
  parser.add_argument("--prompt", type=int, default=10, help="length of the prompt")
  parser.add_argument("--caches", default=",".join(CACHES))
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--json", type=pathlib.Path, help="file for the results")
  parser.add_argument("--began", type=float, help="run one start in this process")
  args = parser.parse_args(argv)
  if args.began:
    found = run(args)
    print(json.dumps(found))
    return found
  import timing

  starts: dict[str, list[dict[str, Any]]] = {}
  for _ in range(args.rounds):
    with tempfile.TemporaryDirectory() as folder:
      for cache in args.caches.split(","):
        command = [*argv, f"--began={time.time()}"]
        start = timing.child(__file__, command, **environment(cache, folder))
        starts.setdefault(cache, []).append(start)
  rows = []
  for cache, found in starts.items():
    middle = {k: statistics.median(start[k] for start in found) for k in found[0]}
    rows.append({"cache": cache, **middle, "tensorflow": found[0]["tensorflow"]})
  return timing.finish(args, rows, {})


if __name__ == "__main__":
  main()

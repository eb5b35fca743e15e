"""How a prompt-tuning step grows with its sizes, and compile time with the depth.

  python benchmarks/scaling.py [--prompts=20,100] [--lengths=64,128] [--batches=8,16]
    [--layers=4,8] [--depths=6,24] [--json=FILE]

One size changes at a time, the others stay at their flags. Steps take turns. `--depths`
compiles scanned models of so many layers a side, persistent cache off.
"""

import dataclasses
import time
from typing import Any

import arithmetic
import jax
import ours
import timing

AXES = {
  "prompts": ("prompt", "20,50,100,200"),
  "lengths": ("inputs", "64,128,256,512"),
  "batches": ("batch", "4,8,16,32"),
  "layers": ("layers", "2,4,8"),
}


def changed(shape: ours.Sizes, name: str, value: int) -> ours.Sizes:
  names = ("encoder_layers", "decoder_layers") if name == "layers" else (name,)
  return dataclasses.replace(shape, **dict.fromkeys(names, value))


def variants(args: Any) -> dict[str, ours.Sizes]:
  """Shapes by what was changed."""
  shape = ours.sizes(args)
  found = {"as given": shape}
  for flag, (name, _) in AXES.items():
    for value in filter(None, getattr(args, flag).split(",")):
      other = changed(shape, name, int(value))
      if other not in found.values():
        found[f"{name} {value}"] = other
  return found


def compile_seconds(shape: ours.Sizes, depth: int, method: str) -> float:
  """Seconds to compile the step of a scanned model; the cache is not asked."""
  deep = dataclasses.replace(changed(shape, "layers", depth), scan=True)
  lowered = ours.trace(method, deep)[0].lower()
  start = time.perf_counter()
  lowered.compile()
  return time.perf_counter() - start


def depths(args: Any) -> list[dict[str, Any]]:
  """Compile time of each depth, the best of `--compiles` turns."""
  shape, rows = ours.sizes(args), []
  chosen = [int(value) for value in filter(None, args.depths.split(","))]
  enabled = jax.config.jax_enable_compilation_cache
  jax.config.update("jax_enable_compilation_cache", False)
  try:
    tries = [
      [compile_seconds(shape, depth, args.method) for depth in chosen]
      for _ in range(args.compiles)
    ]
  finally:
    jax.config.update("jax_enable_compilation_cache", enabled)
  for depth, seconds in zip(chosen, zip(*tries, strict=True), strict=True):
    rows.append({"layers": f"{depth}+{depth}", "compile_s": min(seconds)})
  return rows


def main(argv: list[str] | None = None) -> dict[str, Any]:
  parser = timing.flags(__doc__, rounds=5)
  ours.add_flags(parser)
  for flag, (_, default) in AXES.items():
    parser.add_argument(f"--{flag}", default=default)
  parser.add_argument("--depths", default="6,24", help="layers a side, scanned")
  parser.add_argument("--compiles", type=int, default=3, help="turns of compiling")
  parser.add_argument("--method", default="prompt_tuning")
  args = parser.parse_args(argv)
  shapes = variants(args)
  trainings = {
    name: ours.build(args.method, shape, shape.params())
    for name, shape in shapes.items()
  }
  found = timing.measure(trainings, args)
  rows = []
  for name, training in trainings.items():
    model = arithmetic.need(shapes[name]).prompt_step
    times = found.times[name]
    rows.append(
      {
        "changed": name,
        "ms": times.ms,
        "spread": times.spread,
        "model_gflop": model / 1e9,
        "gflops": model / times.median / 1e9,
        "temporaries_mb": training.temporaries / 1e6,
      }
    )
  trainings.clear()
  compiled = depths(args)
  single: dict[str, Any] = {"peak_gflops": found.peak / 1e9} if found.peak else {}
  for row in compiled:
    single[f"compile_s_{row['layers']}"] = row["compile_s"]
  if len(compiled) > 1:
    single["compile_ratio"] = compiled[-1]["compile_s"] / compiled[0]["compile_s"]
  return timing.finish(args, rows, single)


if __name__ == "__main__":
  timing.start(__file__)
  main()

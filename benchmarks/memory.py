"""Peak memory of prompt tuning and of full fine-tuning, each in a process of its own.

  python benchmarks/memory.py [--steps=3] [--json=FILE]

On a CPU the peak is what the process held at the most, the library itself included; on
a card what the device held. Also compiles a step with bfloat16 weights and looks for
float32 copies of frozen ones: the exit status is 1 where the program asks for one.
"""

import dataclasses
import gc
import json
import sys
from collections.abc import Iterator
from typing import Any

import jax
import ours
import timing

from prompt_tuning.core import trainable as branches

SIDES = ("prompt_tuning", ours.FULL)


def run(name: str, args: Any) -> dict[str, Any]:
  """One side, in this process: a few steps, and what was held."""
  before = timing.resident()
  shape = ours.sizes(args)
  training = ours.build(name, shape, shape.params())
  # What trains was copied; a run keeps no second copy of it.
  gc.collect()
  for _ in range(args.steps):
    training()
  on_device = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
  return {
    "before": before,
    "resident": timing.resident(peak=True),
    "device": on_device,
    "temporaries": training.temporaries,
  }


def arrays(jaxpr: Any) -> Iterator[Any]:
  """The shape and dtype of everything a program makes, inner programs included."""
  for equation in jaxpr.eqns:
    for variable in equation.outvars:
      yield variable.aval
    for value in jax.tree.leaves(list(equation.params.values())):
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        yield from arrays(inner)


def wide_copies(traced: Any, frozen: Any, scanned: bool) -> list[str]:
  """Frozen matrices of which a traced step makes float32 arrays of the same shape."""
  made = {aval.shape for aval in arrays(traced.jaxpr.jaxpr) if aval.dtype == "float32"}
  found = []
  for path, leaf in branches.flatten(frozen).items():
    shapes = {leaf.shape, leaf.shape[1:]} if scanned else {leaf.shape}
    if any(len(shape) > 1 and shape in made for shape in shapes):
      found.append(path)
  return found


def copies(shape: ours.Sizes) -> list[str]:
  """`wide_copies` of a prompt step with bfloat16 weights and activations."""
  narrow = dataclasses.replace(shape, dtype="bfloat16", weights="bfloat16")
  return wide_copies(*ours.trace(SIDES[0], narrow), narrow.scan)


def main(argv: list[str] | None = None) -> dict[str, Any]:
  argv = sys.argv[1:] if argv is None else argv
  parser = timing.flags(__doc__)
  ours.add_flags(parser)
  parser.add_argument("--steps", type=int, default=3)
  parser.add_argument("--side", choices=SIDES, help="run one side in this process")
  args = parser.parse_args(argv)
  if args.side:
    found = run(args.side, args)
    print(json.dumps(found))
    return found
  sides = {name: timing.child(__file__, [*argv, f"--side={name}"]) for name in SIDES}
  field = "resident" if sides[SIDES[0]]["device"] is None else "device"
  rows = [
    {"side": name, **{f"{k}_mb": v and v / 1e6 for k, v in found.items()}}
    for name, found in sides.items()
  ]
  prompt, full = (sides[name] for name in SIDES)
  above = [
    side[field] - (side["before"] if field == "resident" else 0)
    for side in sides.values()
  ]
  found = copies(ours.sizes(args))
  single = {
    "peak_of": field,
    "peak_ratio": prompt[field] / full[field],
    "peak_ratio_above_start": above[0] / above[1] if above[1] else None,
    "float32_copies": found,
  }
  whole = timing.finish(args, rows, single)
  if found:
    raise SystemExit(f"The step makes float32 copies of frozen weights: {found}.")
  return whole


if __name__ == "__main__":
  timing.start(__file__)
  main()

"""A prompt step of ours beside that of T5X's own network, in one run.

  python benchmarks/vs_t5x.py --t5x_python=PATH [--json=FILE]

Same shape, random weights, same token ids, same dropout rate, AdamW without decay. T5X
embeds tokens by a product with ones and zeros; its side runs with that and with a
gather. `ratio` is ours over T5X's with the gather, `one_hot_ratio` over T5X as it is.
"""

from typing import Any

import ours
import theirs
import timing


def main(argv: list[str] | None = None) -> dict[str, Any]:
  parser = timing.flags(__doc__)
  ours.add_flags(parser)
  parser.add_argument("--t5x_python", help="interpreter with T5X; this one without it")
  theirs.add_pages(parser)
  parser.add_argument("--one_hot", action=timing.SWITCH, default=True)
  args = parser.parse_args(argv)
  shape = ours.sizes(args)
  if shape.optimizer != "adamw":
    parser.error(f"--optimizer is {shape.optimizer}; T5X's side has adamw alone")
  batch = shape.ids()
  with theirs.T5X(args.t5x_python, args.their_pages) as t5x:
    built = ours.build("prompt_tuning", shape, shape.params())
    sides = {"ours": built, "t5x": t5x.train("t5x", shape, [batch], one_hot=False)}
    if args.one_hot:
      sides["t5x, one-hot"] = t5x.train("t5x, one-hot", shape, [batch], one_hot=True)
    found = timing.measure(sides, args)
    facts = t5x.facts
  times = found.times
  flops = {n: facts.pop(f"flops of {n}") for n in sides if n != "ours"}
  flops["ours"] = built.flops
  rows = [
    {"side": n, "gflop": flops[n] / 1e9, "ms": t.ms, "spread": t.spread}
    for n, t in times.items()
  ]
  single = {
    "ours_ms": times["ours"].ms,
    "t5x_ms": times["t5x"].ms,
    "ratio": times["ours"].median / times["t5x"].median,
    "one_hot_ratio": None,
    "peak_gflops": found.peak and found.peak / 1e9,
    "t5x": facts,
  }
  if args.one_hot:
    single["one_hot_ratio"] = times["ours"].median / times["t5x, one-hot"].median
  return timing.finish(args, rows, single)


if __name__ == "__main__":
  timing.start(__file__)
  main()

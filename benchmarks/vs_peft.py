"""A training step of ours beside that of Hugging Face PEFT, in one run.

  python benchmarks/vs_peft.py [--peft_python=PATH] [--optimizer=adamw] [--json=FILE]

Same shape, random weights, same token ids, same dropout rate, same rule (AdamW without
decay, or factored Adafactor that scales by the parameter). PEFT's prompt feeds the
encoder alone, as ours does. Steps alternate, one of each a round.
"""

from typing import Any

import ours
import theirs
import timing


def main(argv: list[str] | None = None) -> dict[str, Any]:
  parser = timing.flags(__doc__)
  ours.add_flags(parser)
  theirs.add_flags(parser)
  parser.add_argument("--full", action=timing.SWITCH, default=True)
  args = parser.parse_args(argv)
  shape = ours.sizes(args)
  params, batch = shape.params(), shape.ids()
  with theirs.Peft(args.peft_python, args.their_pages) as peft:
    sides = {"ours": ours.build("prompt_tuning", shape, params)}
    how = {"compile": args.peft_compile}
    sides["peft"] = peft.train("peft", shape, [batch], **how)
    if args.full:
      sides["ours, full"] = ours.build(ours.FULL, shape, params)
      sides["peft, full"] = peft.train("full", shape, [batch], prompted=False, **how)
    found = timing.measure(sides, args)
    facts = peft.facts
  times = found.times
  rows = [{"side": name, "ms": t.ms, "spread": t.spread} for name, t in times.items()]
  single = {
    "ours_ms": times["ours"].ms,
    "peft_ms": times["peft"].ms,
    "ratio": times["ours"].median / times["peft"].median,
    "full_ratio": None,
    "peak_gflops": found.peak and found.peak / 1e9,
    "peft": facts,
  }
  if args.full:
    single["full_ratio"] = times["ours, full"].median / times["peft, full"].median
  return timing.finish(args, rows, single)


if __name__ == "__main__":
  timing.start(__file__)
  main()

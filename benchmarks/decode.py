"""Tokens a second of decoding: greedy and beams, beside PEFT's generate.

  python benchmarks/decode.py [--steps=32] [--beams=1,4] [--peft_python=PATH]
    [--json=FILE]

Ours encodes once, then decodes over a cache in one compiled program; PEFT's `generate`
uses its cache. Both write `--steps` tokens a row, whatever they are.
"""

from typing import Any

import jax
import numpy as np
import ours
import theirs
import timing

from prompt_tuning.core import model as core_model
from prompt_tuning.decoding import decode
from prompt_tuning.outputs import text


def decoder(steps: int, beams: int) -> Any:
  return text.Greedy(steps) if beams == 1 else text.Beam(steps, beams=beams)


def build(shape: ours.Sizes, params: Any, steps: int, beams: int) -> Any:
  """(side, tokens that it writes)."""
  model, whole, _ = ours.prompted("prompt_tuning", shape, params)
  ids = shape.ids()
  batch = core_model.features(ids["inputs"], ids["targets"], model.lengths)
  batch = {name: batch[name] for name in ("inputs", "prompt_index")}
  run = jax.jit(lambda p, b: decode.generate(model, p, b, decoder(steps, beams)))
  written, _ = run(whole, batch)
  best_BU = np.asarray(written).reshape(shape.batch, -1, steps)[:, 0]

  def side() -> None:
    jax.block_until_ready(run(whole, batch))

  return side, int((best_BU > 0).sum())


def without_ends(params: Any) -> Any:
  """Weights that write neither pads nor end marks, so that rows run to their end."""
  kernel_HV = params["decoder"]["logits_dense"]["kernel"]
  # Their logits are 0; the best of many random ones is above that.
  head = {"kernel": kernel_HV.at[:, :2].set(0)}
  return {**params, "decoder": {**params["decoder"], "logits_dense": head}}


def main(argv: list[str] | None = None) -> dict[str, Any]:
  parser = timing.flags(__doc__, rounds=5)
  ours.add_flags(parser)
  theirs.add_flags(parser)
  parser.add_argument("--steps", type=int, default=32, help="tokens a row")
  parser.add_argument("--beams", default="1,4")
  args = parser.parse_args(argv)
  shape = ours.sizes(args)
  params = without_ends(shape.params())
  beams = [int(value) for value in args.beams.split(",")]
  sides, tokens = {}, {}
  with theirs.optional(args.peft_python, args.their_pages) as peft:
    for K in beams:
      name = "greedy" if K == 1 else f"beam {K}"
      side, count = build(shape, params, args.steps, K)
      sides[f"ours {name}"], tokens[f"ours {name}"] = side, count
      if peft:
        side = peft.generate(f"peft {name}", shape, shape.ids(), args.steps, K)
        sides[f"peft {name}"], tokens[f"peft {name}"] = side, shape.batch * args.steps
    found = timing.measure(sides, args)
    facts = peft.facts if peft else None
  rows = []
  for name, times in found.times.items():
    rate = tokens[name] / times.median
    rows.append(
      {"side": name, "ms": times.ms, "tokens": tokens[name], "tokens_s": rate}
    )
  rates = {row["side"]: row["tokens_s"] for row in rows}
  single: dict[str, Any] = {
    "peak_gflops": found.peak and found.peak / 1e9,
    "peft": facts,
  }
  for name in rates:
    if name.startswith("ours") and name.replace("ours", "peft") in rates:
      ratio = rates[name] / rates[name.replace("ours", "peft")]
      single[name.replace("ours ", "").replace(" ", "_") + "_over_peft"] = ratio
  return timing.finish(args, rows, single)


if __name__ == "__main__":
  timing.start(__file__)
  main()

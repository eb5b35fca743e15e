"""One training step of ours: time, arithmetic, memory, and how far from the ideal.

  python benchmarks/train_step.py [--methods=prompt_tuning,ipt_mlp] [--json=FILE]

The ideal is (4 N operations a token + attention) / (peak of a matrix product in the
same run); 6 N for full fine-tuning. Every size is a flag; methods take turns.
"""

from typing import Any

import arithmetic
import ours
import timing

METHODS = (
  "prompt_tuning",
  "ipt_mlp",
  "s_idpg_phm_embeddings",
  "s_idpg_phm",
  ours.FULL,
)


def row(
  name: str, training: ours.Training, found: timing.Measured, shape: ours.Sizes
) -> dict[str, Any]:
  """One line of the table."""
  full = name == ours.FULL
  need = arithmetic.need(shape, 0 if full else None)
  model = need.full_step if full else need.prompt_step
  if "encoding" in (training.model.prompt.needs if training.model.prompt else ()):
    model += arithmetic.code(shape).forward
  times = found.times[name]
  ideal = model / found.peak if found.peak else None
  return {
    "method": name,
    "trains": training.trained,
    "ms": times.ms,
    "spread": times.spread,
    "compiled_gflop": training.flops / 1e9,
    "model_gflop": model / 1e9,
    "ideal_ms": 1000 * ideal if ideal else None,
    "over_ideal": times.median / ideal if ideal else None,
    "temporaries_mb": training.temporaries / 1e6,
    "compile_s": training.seconds,
  }


def main(argv: list[str] | None = None) -> dict[str, Any]:
  parser = timing.flags(__doc__)
  ours.add_flags(parser)
  parser.add_argument("--methods", default=",".join(METHODS))
  args = parser.parse_args(argv)
  shape = ours.sizes(args)
  params = shape.params()
  names = args.methods.split(",")
  trainings = {name: ours.build(name, shape, params) for name in names}
  found = timing.measure(trainings, args)
  rows = [row(name, trainings[name], found, shape) for name in names]
  single = {"peak_gflops": found.peak / 1e9} if found.peak else {}
  return timing.finish(args, rows, single)


if __name__ == "__main__":
  main()

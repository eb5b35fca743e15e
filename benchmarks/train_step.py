"""One training step of ours: time, arithmetic, memory, and how far from the ideal.

  python benchmarks/train_step.py [--methods=prompt_tuning,ipt_mlp] [--json=FILE]

The ideal is (4 N operations a token + attention) / (peak of a matrix product in the
same run); 6 N for full fine-tuning. Every size is a flag; methods take turns.
"""

from typing import Any

import arithmetic
import jax
import ours
import timing

from prompt_tuning.core import trainable as branches

METHODS = (
  "prompt_tuning",
  "prefix_tuning",
  "ipt_mlp",
  "s_idpg_phm_embeddings",
  "s_idpg_phm",
  ours.FULL,
)


def slots(training: ours.Training) -> tuple[int, int]:
  """Keys and values that a prompt puts beside those of (the encoder, the decoder)."""
  if training.model.prompt is None:
    return 0, 0
  whole = branches.merge(training.state.trainable, training.frozen)
  found = jax.eval_shape(training.model.inject, whole, training.batches[0])
  held = found.get("encoder.kv"), found.get("decoder.kv")
  return tuple(0 if record is None else record.vectors.shape[-2] for record in held)


def row(
  name: str, training: ours.Training, found: timing.Measured, shape: ours.Sizes
) -> dict[str, Any]:
  """One line of the table."""
  prompt, places = training.model.prompt, training.model.lengths
  need = arithmetic.need(shape, places.get("encoder", 0), slots(training))
  model = need.full_step if prompt is None else need.prompt_step
  if prompt is not None and "encoding" in prompt.needs:
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
  timing.start(__file__)
  main()

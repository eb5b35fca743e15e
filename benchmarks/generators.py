"""What each generator of prompts costs over a plain prompt of the same length.

  python benchmarks/generators.py [--methods=ipt_mlp,s_idpg_phm] [--json=FILE]

Steps of all methods take turns. `<method>+cached` is the step of CACHE_CODES = True:
what the method reads of the frozen encoder is made once and handed to it as a feature.
"""

import statistics
from typing import Any

import jax
import ours
import timing

from prompt_tuning.core import model as core_model
from prompt_tuning.engine import codes as engine_codes

PLAIN, CACHED = "prompt_tuning", "+cached"
METHODS = (
  "ipt_random",
  "ipt_mlp",
  "ipt_cnn",
  "ipt_rnn",
  "s_idpg_dnn_embeddings",
  "s_idpg_phm_embeddings",
  "s_idpg_phm",
  "s_idpg_phm" + CACHED,
)


def codes(name: str, shape: ours.Sizes, params: Any) -> dict[str, Any]:
  """The feature that CACHE_CODES makes of the batch before the first step."""
  model, whole, trainable = ours.prompted(name, shape, params)
  engine_codes.check(model, trainable, streams=False)
  batch = core_model.features(**shape.ids(), lengths=model.lengths)
  return {"code": jax.jit(model.codes)(whole, batch)}


def build(name: str, shape: ours.Sizes, params: Any) -> ours.Training:
  """The step of a method, or of its cached form."""
  if not name.endswith(CACHED):
    return ours.build(name, shape, params)
  name = name.removesuffix(CACHED)
  features = codes(name, shape, params)
  return ours.build(name, shape, params, features=features)


def main(argv: list[str] | None = None) -> dict[str, Any]:
  parser = timing.flags(__doc__)
  ours.add_flags(parser)
  parser.add_argument("--methods", default=",".join(METHODS))
  args = parser.parse_args(argv)
  shape = ours.sizes(args)
  params = shape.params()
  names = [PLAIN, *filter(None, args.methods.split(","))]
  trainings = {name: build(name, shape, params) for name in names}
  found = timing.measure(trainings, args)
  plain = found.times[PLAIN]
  rows = []
  for name, training in trainings.items():
    times = found.times[name]
    # Paired with the plain step of the same round, so that slow rounds cancel.
    pairs = zip(times.seconds, plain.seconds, strict=True)
    rows.append(
      {
        "method": name,
        "trains": training.trained,
        "ms": times.ms,
        "spread": times.spread,
        "over_plain": times.median / plain.median,
        "over_plain_paired": statistics.median(own / base for own, base in pairs),
        "gflop_over_plain": training.flops / trainings[PLAIN].flops,
        "temporaries_mb": training.temporaries / 1e6,
      }
    )
  single = {"peak_gflops": found.peak / 1e9} if found.peak else {}
  return timing.finish(args, rows, single)


if __name__ == "__main__":
  timing.start(__file__)
  main()

"""What each generator of prompts costs over a plain prompt of the same length.

  python benchmarks/generators.py [--methods=ipt_mlp,s_idpg_phm] [--json=FILE]

Steps of all methods take turns. `<method>+cached` hands the frozen encoder's output to
the step as a feature (`encoding`), so that it is not computed again.
"""

import statistics
from typing import Any

import jax
import jax.numpy as jnp
import ours
import timing

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


def encodings(shape: ours.Sizes, params: Any) -> dict[str, Any]:
  """The feature that holds what the frozen encoder says of the batch."""
  ids_BT = jnp.asarray(shape.ids()["inputs"])
  backbone = shape.backbone()

  @jax.jit
  def encode(params, ids_BT):
    embeddings_BTH = backbone.embed(params, ids_BT)
    return backbone.encode_rows(params, embeddings_BTH, ids_BT > 0)

  return {"encoding": encode(params, ids_BT)}


def build(name: str, shape: ours.Sizes, params: Any) -> ours.Training:
  """The step of a method, or of its cached form."""
  if not name.endswith(CACHED):
    return ours.build(name, shape, params)
  features = encodings(shape, params)
  return ours.build(name.removesuffix(CACHED), shape, params, features=features)


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
  main()

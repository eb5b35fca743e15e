"""The matrix products of a prompt step, each alone: as a step asks XLA for, and not.

  python benchmarks/products.py [--rounds=10] [--json=FILE]

On x86 CPUs a step of many positions asks XLA to leave products to Eigen
(`engine.compilation.options`); XLA's own choice is timed in turn. Where nothing is
asked, one column stands.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import ours
import timing


@dataclasses.dataclass(frozen=True)
class Product:
  """An einsum of two arrays.

  Attributes:
    spec: of the einsum. left, right: shapes.
  """

  spec: str
  left: tuple[int, ...]
  right: tuple[int, ...]

  @property
  def operations(self) -> int:
    """Of a multiplication and an addition for every index."""
    names = "".join(self.spec.split("->")[0].split(","))
    size = dict(zip(names, (*self.left, *self.right), strict=True))
    return 2 * math.prod(size.values())

  def side(self, options: dict[str, str], dtype: str) -> timing.Side:
    """The product, compiled."""
    keys = jax.random.split(jax.random.key(0))
    left, right = (
      jax.random.normal(key, shape, dtype)
      for key, shape in zip(keys, (self.left, self.right), strict=True)
    )

    def multiply(left: jax.Array, right: jax.Array) -> jax.Array:
      return jnp.einsum(self.spec, left, right)

    run = jax.jit(multiply, compiler_options=options).lower(left, right).compile()
    return lambda: jax.block_until_ready(run(left, right))


def products(shape: ours.Sizes) -> dict[str, Product]:
  """The large products of a step: of weights, of attention, of what reads the encoder.

  Axes are those of `Sizes`, tokens t, positions q and s of a row, joined heads j.
  """
  B, H, N, D, F = shape.batch, shape.width, shape.heads, shape.head_width, shape.ff
  V, U, T = shape.vocabulary, shape.targets, shape.prompt + shape.inputs
  heads, pairs = (B, N, T, D), (B, N, T, T)
  return {
    "query, key, value": Product("th,hj->tj", (B * T, H), (H, N * D)),
    "their gradient": Product("tj,hj->th", (B * T, N * D), (H, N * D)),
    "feed-forward in": Product("th,hf->tf", (B * T, H), (H, F)),
    "its gradient": Product("tf,hf->th", (B * T, F), (H, F)),
    "feed-forward out": Product("tf,fh->th", (B * T, F), (F, H)),
    "attention, scores": Product("bnqd,bnsd->bnqs", heads, heads),
    "attention, mix": Product("bnqs,bnsd->bnqd", pairs, heads),
    "attention, gradient": Product("bnqs,bnqd->bnsd", pairs, heads),
    "folded scores": Product("bxh,bsh->bxs", (B, N * U, H), (B, T, H)),
    "logits": Product("th,hv->tv", (B * U, H), (H, V)),
    "gradient of logits": Product("tv,hv->th", (B * U, V), (H, V)),
  }


def main(argv: list[str] | None = None) -> dict[str, Any]:
  parser = timing.flags(__doc__)
  ours.add_flags(parser)
  args = parser.parse_args(argv)
  shape = ours.sizes(args)
  made = products(shape)
  kinds = {"xla": {}}
  if asked := shape.options:
    kinds["asked"] = asked
  sides = {
    (name, kind): product.side(options, shape.dtype)
    for name, product in made.items()
    for kind, options in kinds.items()
  }
  found = timing.measure(sides, args)
  rows = []
  for name, product in made.items():
    times = {kind: found.times[name, kind] for kind in kinds}
    row = {
      "product": name,
      "gflop": product.operations / 1e9,
      **{f"{k}_gflops": product.operations / t.median / 1e9 for k, t in times.items()},
    }
    if asked:
      row["asked_over_xla"] = times["asked"].median / times["xla"].median
    rows.append(row)
  single = {"asked": asked or None}
  if found.peak:
    single["peak_gflops"] = found.peak / 1e9
  return timing.finish(args, rows, single)


if __name__ == "__main__":
  timing.start(__file__)
  main()

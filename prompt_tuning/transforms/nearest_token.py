"""Rows that are tokens: each row's nearest one stands in its place.

  Z_p = E[argmax_v cos(prompt_p, E_v)],   dL/dprompt := dL/dZ

Wen et al., 2023, "Hard Prompts Made Easy" (PEZ): the gradient at the tokens moves the
vectors behind them, which are kept. The released text loop projects those too at the
end of each step, and so loses them.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from prompt_tuning.core.axes import along
from prompt_tuning.core.context import Code, Spec
from prompt_tuning.core.prompt import Drawn

METRICS = ("cosine", "euclidean")


class NearestToken(nn.Module):
  """Rows of the frozen token table.

  Attributes:
    metric: "cosine" or "euclidean".
    first: ids below it are never taken: pads and marks.
    last: nor are those above it (T5 1.1 ends in 100 sentinels and 28 empty rows, so
      31,999 there); None takes all.
  """

  needs: ClassVar[frozenset[str]] = frozenset({"table"})
  metric: str = "cosine"
  first: int = 3
  last: int | None = None

  def __post_init__(self) -> None:
    if self.metric not in METRICS:
      raise ValueError(
        f"`NearestToken.metric` must be one of {METRICS}, got {self.metric!r}."
      )
    super().__post_init__()

  @nn.compact
  def __call__(
    self, drawn: Drawn, code: Code | None, spec: Spec, train: bool = False
  ) -> Drawn:
    end = spec.vocabulary if self.last is None else self.last + 1
    if not 0 <= self.first < end <= spec.vocabulary:
      raise ValueError(
        f"`NearestToken.first` and `last` are {self.first} and {self.last}, but ids go "
        f"from 0 to {spec.vocabulary - 1}."
      )
    table_VH = jnp.asarray(spec.table[self.first : end], jnp.float32)
    ids = nearest(drawn.prompt, table_VH, self.metric)
    return Drawn(_instead(drawn.prompt, table_VH[ids]), drawn.mask)


def nearest(
  rows: Float[Array, "*X H"], table_VH: Float[Array, "V H"], metric: str = "cosine"
) -> Int[Array, "*X"]:
  """Which row of a table each vector is nearest to; the earliest of those that tie."""
  squares_V = jnp.square(table_VH).sum(-1)
  products = jnp.einsum("VH,...H->...V", table_VH, rows, precision="highest")
  if metric == "euclidean":
    return (products - along(squares_V / 2, products)).argmax(-1)
  inverse_V = jax.lax.rsqrt(jnp.maximum(squares_V, 1e-12))
  return (products * along(inverse_V, products)).argmax(-1)


@jax.custom_vjp
def _instead(rows: Array, tokens: Array) -> Array:
  """`tokens`, whose gradient goes to `rows`."""
  del rows
  return tokens


_instead.defvjp(
  lambda rows, tokens: (tokens, None),
  lambda _, change: (change, jnp.zeros_like(change)),
)

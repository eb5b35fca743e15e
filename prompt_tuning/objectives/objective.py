"""What training lowers: a weighted sum of terms."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import flax.struct
from jaxtyping import Array, Float


@flax.struct.dataclass
class Term:
  """A sum over the batch and what to divide it by.

  Sums and weights add up over microbatches, so the mean is that of the whole batch.

  Attributes:
    total: the summed loss. weight: the number of counted targets.
    metrics: name -> (sum, weight), for the log.
  """

  total: Float[Array, ""]
  weight: Float[Array, ""]
  metrics: dict[str, tuple[Array, Array]]


class Objective(Protocol):
  """`key` is the dropout key; None where nothing is dropped."""

  def __call__(self, model: Any, params: Any, batch: Any, key: Any) -> Term: ...


@dataclasses.dataclass(frozen=True)
class Weighted:
  """Several objectives as one.

  Attributes:
    terms: objectives that share their weight (all count target tokens, say).
    weights: factors, one a term.
  """

  terms: Sequence[Objective]
  weights: Sequence[float]

  def __post_init__(self) -> None:
    if not self.terms or len(self.terms) != len(self.weights):
      raise ValueError(
        "`Weighted` takes one weight for each of at least one term, got "
        f"{len(self.terms)} terms and {len(self.weights)} weights."
      )

  def __call__(self, model: Any, params: Any, batch: Any, key: Any) -> Term:
    parts = [term(model, params, batch, key) for term in self.terms]
    pairs = list(zip(self.weights, parts, strict=True))
    metrics: dict[str, Any] = {}
    for part in parts:
      metrics.update(part.metrics)
    total = sum(
      weight * part.total / part.weight * parts[0].weight for weight, part in pairs
    )
    return Term(total, parts[0].weight, metrics)

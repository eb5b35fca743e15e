"""Phases without updates: what is added up over a split, and scores of many tasks."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Probe(NamedTuple):
  """What a measurement may ask.

  Attributes:
    model: `core.model.PromptedModel`, one example a row. params: all branches.
    loss: (params, batch) -> the summed loss of a batch and what it is divided by.
  """

  model: Any
  params: Any
  loss: Callable[[Any, Any], tuple[Array, Array]]


class Measure(Protocol):
  """A sum over the examples of a split; rows that only fill a batch weigh nothing.

  Attributes:
    split: of the phase's task, such as "train".
    limit: examples at the most; None for all.
  """

  split: str
  limit: int | None

  def init(self, probe: Probe) -> Any:
    """The sum of no example; it may ask for shapes alone."""

  def add(
    self, total: Any, probe: Probe, batch: Any, weight_B: Float[Array, " B"]
  ) -> Any:
    """The sum with a batch added; compiled. `weight_B` is 1 at examples, else 0."""

  def finish(self, total: Any) -> Mapping[str, np.ndarray]:
    """Named arrays, from the sum on the host."""


@dataclasses.dataclass(frozen=True)
class Exam:
  """Scores of what a phase starts from on the tasks of a mapping.

  The result's scores are named "TASK/METRIC", such as "sst2/accuracy".

  Attributes:
    tasks: name -> task. split: of each.
  """

  tasks: Mapping[str, Any]
  split: str = "validation"


def per_example(
  probe: Probe,
  inner: Callable[[Any], Any],
  held: Any,
  batch: Any,
  of: Callable[[Array], Array] | None = None,
) -> Any:
  """Gradients of each example's own mean loss [B ...], by `vmap`.

  Args:
    inner: what is differentiated -> all parameters. held: where it stands.
    batch: of rows, one example each. of: what of the loss; None for itself.
  """

  def one(row: Any) -> Any:
    def loss(value: Any) -> Array:
      total, weight = probe.loss(inner(value), jax.tree.map(lambda x: x[None], row))
      # A row that only fills the batch counts nothing.
      mean = total / jnp.maximum(weight, 1.0)
      return mean if of is None else of(mean)

    return jax.grad(loss)(held)

  return jax.vmap(one)(batch)

"""What training lowers: terms over one forward pass, added up with weights."""

import abc
import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from prompt_tuning.core.forward import Forward
from prompt_tuning.core.ids import Ids


class Words(NamedTuple):
  """What an objective may ask of a vocabulary.

  Attributes:
    encode: text -> piece ids without an end mark. end: the end mark.
  """

  encode: Callable[[str], Sequence[int]]
  end: int


@flax.struct.dataclass
class Term:
  """A sum over the batch and what to divide it by.

  Sums and weights add up over microbatches, so the mean is that of the whole batch.

  Attributes:
    total: the summed loss. weight: what was counted, tokens or examples; may be 0.
    metrics: name -> (sum, weight), for the log.
  """

  total: Float[Array, ""]
  weight: Float[Array, ""]
  metrics: dict[str, tuple[Array, Array]]


class Objective(abc.ABC):
  """One term: a frozen dataclass of numbers and texts.

  One that owns weights also has a `name` and `init(key, model, params) -> tree`: they
  are the branch `objective/NAME`, which trains and is no part of the product.
  """

  # Whether it compares the labels of a task.
  labelled: ClassVar[bool] = False

  @property
  def teachers(self) -> Sequence[str]:
    """Names of the prompts that it learns from, see `core.model`."""
    return ()

  @property
  def traces(self) -> Sequence[str]:
    """What it reads of the inside of a backbone, by the backbone's own names."""
    return ()

  def bound(self, words: Words, labels: Sequence[str] | None) -> "Objective":
    """The same, with what it must know of a vocabulary and a task's labels.

    Raises:
      ValueError: where it needs labels and there are none.
    """
    return self

  @abc.abstractmethod
  def count(self, batch: Any, ids: Ids) -> Float[Array, ""]:
    """What it will divide by; adds up over the parts of a batch.

    Args:
      batch: features. ids: of the backbone, which say what pads.
    """

  @abc.abstractmethod
  def __call__(self, forward: Forward) -> Term:
    """The term of a batch or of a part of one."""


@dataclasses.dataclass(frozen=True)
class Weighted:
  """Several objectives as one: the sum of their means, each times its weight.

  Attributes:
    terms: objectives. weights: factors, one a term; a term of factor 0 is left out.
  """

  terms: Sequence[Objective]
  weights: Sequence[float]

  def __post_init__(self) -> None:
    if not self.terms or len(self.terms) != len(self.weights):
      raise ValueError(
        "`Weighted` takes one weight for each of at least one term, got "
        f"{len(self.terms)} terms and {len(self.weights)} weights."
      )
    if not any(self.weights):
      raise ValueError(
        f"`Weighted.weights` are {tuple(self.weights)}: nothing is lowered. Give one "
        "that is not 0."
      )


class Part(NamedTuple):
  """One term of an objective and its factor."""

  factor: float
  objective: Objective


def parts(objective: Any) -> tuple[Part, ...]:
  """The terms of an objective, nested sums flattened.

  Raises:
    ValueError: where two terms own weights under one name.
  """
  if not isinstance(objective, Weighted):
    return (Part(1.0, objective),)
  found = tuple(
    Part(weight * part.factor, part.objective)
    for weight, term in zip(objective.weights, objective.terms, strict=True)
    if weight
    for part in parts(term)
  )
  names = [part.objective.name for part in found if hasattr(part.objective, "init")]
  if len(set(names)) < len(names):
    raise ValueError(
      f"`Weighted.terms` holds terms that own weights under the names {names}. Give "
      "each a name of its own."
    )
  return found


def counts(objective: Any, batch: Any, ids: Ids) -> tuple[Array, ...]:
  """What each term divides by, over a whole batch; a single term tells by itself."""
  found = parts(objective)
  return tuple(part.objective.count(batch, ids) for part in found if len(found) > 1)


def terms(objective: Any, forward: Forward) -> tuple[Term, ...]:
  """Every term over one pass."""
  found = parts(objective)
  forward.asked |= {name for part in found for name in part.objective.traces}
  return tuple(part.objective(forward) for part in found)


def divisor(weight: Any) -> Any:
  """A weight to divide by: where nothing was counted there is nothing to divide."""
  # Sums of a whole split are numpy's, in float64.
  return jnp.maximum(weight, 1.0) if isinstance(weight, jax.Array) else max(weight, 1.0)


def total(objective: Any, found: Sequence[Term], whole: Sequence[Any]) -> Array:
  """The loss of a part of a batch, in units of the first term.

  Divided by the first count and added up over all parts, it is the loss of the batch,
  and so is its gradient.

  Args:
    found: the terms of the part. whole: `counts` of the batch.
  """
  first, *rest = zip(parts(objective), found, strict=True)
  sum_ = first[1].total if first[0].factor == 1 else first[0].factor * first[1].total
  for (part, term), count in zip(rest, whole[1:], strict=True):
    sum_ += part.factor * term.total * (divisor(whole[0]) / divisor(count))
  return sum_


def mean(objective: Any, found: Sequence[Term]) -> Any:
  """The loss of terms that were added up over all parts."""
  means = [
    term.total / divisor(term.weight) * part.factor
    for part, term in zip(parts(objective), found, strict=True)
  ]
  return functools.reduce(operator.add, means)


def metrics(found: Sequence[Term]) -> dict[str, tuple[Array, Array]]:
  """name -> (sum, weight) of all terms; of one name, the first."""
  return {name: pair for term in reversed(found) for name, pair in term.metrics.items()}


def owned(objective: Any, key: Any, model: Any, params: Any) -> dict[str, Any]:
  """The branch `objective`: name -> parameters of a term that owns some, drawn.

  Args:
    key: to draw with. model: `core.model.PromptedModel`. params: the other branches.
  """
  found = {}
  for number, part in enumerate(parts(objective)):
    if hasattr(part.objective, "init"):
      one = jax.random.fold_in(key, number)
      found[part.objective.name] = part.objective.init(one, model, params)
  return found


def teachers(objective: Any) -> frozenset[str]:
  """Names of the teachers that some term reads."""
  return frozenset(
    name for part in parts(objective) for name in part.objective.teachers
  )


def bound(objective: Any, words: Words, labels: Sequence[str] | None) -> Any:
  """An objective whose terms know the vocabulary and the labels of a task."""
  if not isinstance(objective, Weighted):
    return objective.bound(words, labels)
  terms = tuple(bound(term, words, labels) for term in objective.terms)
  return dataclasses.replace(objective, terms=terms)


def judged(objective: Any) -> Any:
  """What a validation split is judged by: a term with an `inner` one, by that."""
  if isinstance(objective, Weighted):
    return Weighted(tuple(map(judged, objective.terms)), objective.weights)
  return getattr(objective, "inner", objective)


def alone(objective: Any) -> Any:
  """What can be computed from a prompt alone; None if there is nothing.

  Terms that own weights, which no product keeps, or learn from a teacher are left out.
  """
  kept = [
    part
    for part in parts(judged(objective))
    if not hasattr(part.objective, "init") and not part.objective.teachers
  ]
  if not kept:
    return None
  if len(kept) == 1 and kept[0].factor == 1:
    return kept[0].objective
  factors, terms = zip(*kept, strict=True)
  return Weighted(terms, factors)

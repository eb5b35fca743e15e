"""How often the tasks of a mixture are drawn, beyond fixed rates.

Temperature   task k with a probability in proportion to min(size_k, cap)^(1 / t)
              (Raffel et al., 2020, section 3.5.2; mT5 calls 1 / t alpha)
TaskSubset    each batch is of a few tasks, drawn anew (multitask prompt tuning, Wang
              et al., 2023, arXiv 2303.02861)
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from numbers import Real
from typing import Any, overload

import numpy as np


@dataclasses.dataclass(frozen=True)
class Temperature:
  """Rates between proportional (t = 1) and equal (t without bound).

  Attributes:
    temperature: t, a number above 0.
  """

  temperature: float = 2.0

  def __post_init__(self) -> None:
    t = self.temperature
    number = isinstance(t, Real) and not isinstance(t, bool)
    if not number or not 0 < t < float("inf"):
      raise ValueError(
        f"`Temperature.temperature` must be a number above 0, got {t!r}. 1 is "
        "proportional to sizes, and the larger it is, the more equal are the tasks."
      )

  def rates(self, sizes: Sequence[int]) -> list[float]:
    """The rate of tasks of these sizes; the largest is 1."""
    most = max(sizes)
    return [(size / most) ** (1 / self.temperature) for size in sizes]


@dataclasses.dataclass(frozen=True)
class TaskSubset:
  """Each batch holds rows of n tasks, with n uniform in least..most.

  The n tasks are drawn with replacement, with probabilities in proportion to
  min(size, cap), and share the batch evenly: one that is drawn twice has two shares,
  and what is left over goes to one of them at random. Of a batch with fewer rows than
  n, the first drawn give one row each.

  Attributes:
    least: at least so many draws, from 1.
    most: and at most so many; None for as many as there are tasks.
  """

  least: int = 2
  most: int | None = None

  def __post_init__(self) -> None:
    for name in ("least", "most"):
      value = getattr(self, name)
      whole = isinstance(value, int) and not isinstance(value, bool)
      if not (whole and value >= 1) and not (name == "most" and value is None):
        raise ValueError(
          f"`TaskSubset.{name}` must be a whole number from 1, got {value!r}."
        )
    self.check(self.most or self.least)

  def check(self, tasks: int) -> None:
    """Raises ValueError where there are fewer tasks than shall be drawn."""
    if not self.least <= (self.most or tasks) <= tasks:
      raise ValueError(
        f"`TaskSubset` draws {self.least} to {self.most or tasks} of {tasks} tasks. "
        "Let `least` be no more than `most`, and `most` no more than there are tasks."
      )

  def rates(self, sizes: Sequence[int]) -> list[float]:
    """The rate of tasks of these sizes, over many batches."""
    return [float(size) for size in sizes]

  def counts(
    self, weights: Sequence[float], size: int, seed: int, step: int
  ) -> np.ndarray:
    """Rows of each task [K] in the batch of a step, the same whenever it is asked.

    Args:
      weights: of the K tasks; they add up to 1. size: rows of the batch.
    """
    rng = np.random.default_rng([seed, step])
    K = len(weights)
    n = int(rng.integers(self.least, (self.most or K) + 1))
    drawn = rng.choice(K, n, p=weights)[:size]
    share, rest = divmod(size, len(drawn))
    counts_K = share * np.bincount(drawn, minlength=K)
    counts_K[rng.choice(drawn)] += rest
    return counts_K


@dataclasses.dataclass(frozen=True)
class Subsets(Sequence):
  """Training examples of several tasks, drawn batch by batch.

  Attributes:
    examples: of all tasks. owners: the place among K of each one's task.
    rule: counts the rows of a batch. weights: of the K tasks.
  """

  examples: Sequence[Any]
  owners: Sequence[int]
  rule: TaskSubset
  weights: Sequence[float]

  def __len__(self) -> int:
    return len(self.examples)

  @overload
  def __getitem__(self, i: int) -> Any: ...
  @overload
  def __getitem__(self, i: slice) -> Sequence[Any]: ...
  def __getitem__(self, i):
    return self.examples[i]

  def over(self, examples: Sequence[Any]) -> "Subsets":
    """The same draws of examples that hold more."""
    return dataclasses.replace(self, examples=examples)

  def order(self, size: int, seed: int, first_step: int = 0) -> Iterator[int]:
    """Numbers of examples, `size` a batch, for ever, from a step on.

    Each task's examples come in an order of their own for each time through, and each
    task goes on where its last batch ended: where that is follows from the seed and the
    step alone, so a run that goes on draws what an unbroken one draws.
    """
    K = len(self.weights)
    owners = np.asarray(self.owners)
    own = [np.flatnonzero(owners == k) for k in range(K)]
    taken_K = np.zeros(K, np.int64)
    orders: dict[tuple[int, int], np.ndarray] = {}

    def number(k: int, count: int) -> int:
      epoch, place = divmod(count, len(own[k]))
      if (k, epoch) not in orders:
        orders.pop((k, epoch - 1), None)
        rng = np.random.default_rng([seed, k, epoch])
        orders[k, epoch] = rng.permutation(own[k])
      return int(orders[k, epoch][place])

    for step in itertools.count():
      counts_K = self.rule.counts(self.weights, size, seed, step)
      if step >= first_step:
        chosen = [
          number(k, int(taken_K[k]) + i) for k in range(K) for i in range(counts_K[k])
        ]
        mixed = np.random.default_rng([seed, step, 1]).permutation(chosen)
        yield from mixed.tolist()
      taken_K += counts_K

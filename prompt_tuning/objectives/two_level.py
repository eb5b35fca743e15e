"""Two levels: a prompt is lowered for what it becomes after a few steps of its own.

  p_0 = p;  p_{s+1} = p_s - rate * dL_support(p_s)/dp;  loss = L_query(p_steps)

A batch holds M episodes. Its rows are brought in the order of their `task`, where they
have one, and cut into M stretches: the first half of each is the support, the second
the query. Order "first" takes the inner gradient for a constant (Finn et al., 2017,
"Model-Agnostic Meta-Learning", its first-order form); "second" differentiates it too.
With rate 0 this is training on the queries.

It is a term and no procedure: what it changes is the step, not what a phase is.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from prompt_tuning.core import trainable as branches
from prompt_tuning.core.forward import Forward
from prompt_tuning.core.ids import Ids
from prompt_tuning.objectives.cross_entropy import CrossEntropy
from prompt_tuning.objectives.objective import Objective, Term, divisor

ORDERS = ("first", "second")


@dataclasses.dataclass(frozen=True)
class TwoLevel(Objective):
  """The outer loss; evaluation computes `inner` as it is.

  Attributes:
    inner: the term of both levels; it owns no weights.
    episodes: M. Twice as many must divide the rows of each part of a batch.
    rate: of the inner steps, from 0. steps: how many. order: of `ORDERS`.
    branch: what the inner steps move.
  """

  inner: Objective = CrossEntropy()  # noqa: RUF009
  episodes: int = 1
  rate: float = 0.1
  steps: int = 1
  order: str = "first"
  branch: str = "prompt"

  def __post_init__(self) -> None:
    if self.episodes < 1 or self.steps < 0 or self.rate < 0:
      raise ValueError(
        f"`TwoLevel.episodes`, `steps` and `rate` are {self.episodes}, {self.steps} "
        f"and {self.rate}; they must be from 1, from 0 and from 0."
      )
    if self.order not in ORDERS:
      raise ValueError(
        f"`TwoLevel.order` is {self.order!r}; it must be one of {ORDERS}."
      )
    if hasattr(self.inner, "init") or self.inner.teachers:
      raise ValueError(
        f"`TwoLevel.inner` is {type(self.inner).__name__}, which owns weights or "
        "learns from a teacher. Put it beside TwoLevel in a Weighted."
      )

  @property
  def labelled(self) -> bool:
    """Whether the inner term compares labels."""
    return self.inner.labelled

  def bound(self, words: Any, labels: Any) -> "TwoLevel":
    return dataclasses.replace(self, inner=self.inner.bound(words, labels))

  def count(self, batch: Any, ids: Ids) -> Float[Array, ""]:
    """What the inner term counts in the queries."""
    _, query = self._halves(batch)
    return jax.vmap(lambda own: self.inner.count(own, ids))(query).sum()

  def __call__(self, forward: Forward) -> Term:
    if forward.model is not None and forward.model.segments > 1:
      raise ValueError(
        "`OBJECTIVE` is TwoLevel, whose episodes are rows of one example each. Set "
        "PACK_SEGMENTS = 1."
      )
    support, query = self._halves(forward.batch)

    def episode(own_support: Any, own_query: Any, number: Any) -> Term:
      key = forward.key
      key = None if key is None else jax.random.fold_in(key, number)
      params = self.moved(forward.model, forward.params, own_support, key)
      return self.inner(Forward(forward.model, params, own_query, key))

    terms = jax.vmap(episode)(support, query, jnp.arange(self.episodes))
    return jax.tree.map(lambda x: x.sum(0), terms)

  def moved(self, model: Any, params: Any, support: Any, key: Any = None) -> Any:
    """All parameters after the inner steps on an episode's support."""
    own, rest = branches.split(params, (self.branch,))
    if not jax.tree.leaves(own):
      raise ValueError(
        f"`TwoLevel.branch` is {self.branch!r}, which holds no parameter. Name one "
        "that does, such as 'prompt'."
      )

    def forward(own: Any, step: int) -> Forward:
      one = None if key is None else jax.random.fold_in(key, step + 1)
      return Forward(model, branches.merge(own, rest), support, one)

    def loss(own: Any, step: int) -> Array:
      term = self.inner(forward(own, step))
      return term.total / divisor(term.weight)

    for step in range(self.steps):
      change = jax.grad(loss)(own, step)
      if self.order == "first":
        change = jax.lax.stop_gradient(change)
      change = self.mapped(change, forward(own, step))
      own = jax.tree.map(lambda x, g: x - self.rate * g, own, change)
    return branches.merge(own, rest)

  def mapped(self, change: Any, forward: Forward) -> Any:
    """What an inner step takes of a gradient; `forward` is the pass that gave it."""
    del forward
    return change

  def _halves(self, batch: Any) -> tuple[Any, Any]:
    """Support and query, leaves [M K ...]."""
    B = len(batch["inputs"])
    if B % (2 * self.episodes):
      raise ValueError(
        f"`TwoLevel.episodes` is {self.episodes}, but a part of a batch has {B} rows. "
        f"Make BATCH_SIZE / MICROBATCHES a multiple of {2 * self.episodes}."
      )
    if "task" in batch:
      order = jnp.argsort(batch["task"].reshape(B), stable=True)
      batch = {name: jnp.take(x, order, axis=0) for name, x in batch.items()}
    K = B // (2 * self.episodes)
    halves = {
      name: x.reshape(self.episodes, 2, K, *x.shape[1:]) for name, x in batch.items()
    }
    return tuple({name: x[:, i] for name, x in halves.items()} for i in (0, 1))

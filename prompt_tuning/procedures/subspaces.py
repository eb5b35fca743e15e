"""Tasks one after the other, each with coordinates in the subspace of its tokens.

Measure where the token embeddings of a task lie; where that is near the subspace of an
earlier task, take its subspace and go on from a copy of its coordinates; else take the
directions of most variance at right angles to all subspaces before. After "SPARC:
Subspace-Aware Prompt Adaptation for Robust Continual Learning in LLMs" (arXiv
2502.02909), whose formulas could not be read: token embeddings, the overlap and its
threshold are our choice.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from prompt_tuning.procedures.continual import Continual
from prompt_tuning.procedures.phase import Phase, Result, result
from prompt_tuning.procedures.surgery import Given
from prompt_tuning.procedures.token_space import (
  Space,
  TokenMoments,
  overlap,
  principal,
)

WORD = "prompt/parameterise"


@dataclasses.dataclass(frozen=True)
class Subspaces(Continual):
  """Attributes:
  rank: r, of each subspace. threshold: overlap from which an earlier one is taken.
  measure: see `TokenMoments`. done: results so far, which `next` fills in.
  """

  rank: int = 32
  threshold: float = 0.8
  measure: TokenMoments = TokenMoments()  # noqa: RUF009
  done: Sequence[Result] = ()

  apart = True

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.rank < 1 or not 0 <= self.threshold:
      raise ValueError(
        f"`Subspaces.rank` (RANK) must be at least 1 and `threshold` (OVERLAP) at "
        f"least 0, got {self.rank} and {self.threshold}."
      )

  def next(self, done: Sequence[Result]) -> Phase | None:
    return super(Subspaces, dataclasses.replace(self, done=tuple(done))).next(done)

  def learning(self, t: int) -> Phase:
    """What is due for the t-th task: its measurement, then its learning."""
    name = self.names[t - 1]
    space = f"space_{name}"
    if space not in [one.name for one in self.done]:
      return Phase(space, task=self.tasks[name], measure=self.measure)
    spaces, near = self.spaces(t)
    start: dict[str, Any] = _leaves(spaces[-1])
    if near is not None:
      start[f"{WORD}/coordinates"] = f"learn_{near}:{WORD}/coordinates"
    return self._learn(f"learn_{name}", name, start=start)

  def _learn(self, phase: str, name: str, **others: Any) -> Phase:
    if phase.startswith("single_"):
      # Alone it has the subspace of its own tokens.
      found = result(self.done, f"space_{name}").arrays
      others = {"start": _leaves(principal(found, self.rank))}
    return super()._learn(phase, name, **others)

  def spaces(self, t: int) -> tuple[list[Space], str | None]:
    """The subspaces of the first t tasks, and the task that the last one is near."""
    held: list[Space] = []
    near = None
    for name in self.names[:t]:
      found = result(self.done, f"space_{name}").arrays
      fresh = principal(found, self.rank)
      shares = [overlap(fresh.basis, other.basis) for other in held]
      near = None
      if shares and max(shares) >= self.threshold:
        best = shares.index(max(shares))
        near = self.names[best]
        held.append(held[best])
      else:
        held.append(principal(found, self.rank, [other.basis for other in held]))
    return held, near


def _leaves(space: Space) -> dict[str, Any]:
  """What a phase starts its subspace from."""
  return {f"{WORD}/{leaf}": Given(x[None]) for leaf, x in space._asdict().items()}

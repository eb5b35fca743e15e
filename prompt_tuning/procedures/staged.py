"""Phases one after the other, all of them known from the start."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from prompt_tuning.procedures.phase import OWN, Phase, Procedure, Result


@dataclasses.dataclass(frozen=True)
class Staged(Procedure):
  """Attributes:
  phases: in order; each may start from those before it, by their names.
  """

  phases: Sequence[Phase]

  def __post_init__(self) -> None:
    fits = isinstance(self.phases, Sequence) and self.phases
    if not fits or not all(isinstance(one, Phase) for one in self.phases):
      raise ValueError(
        f"`Staged.phases` is {self.phases!r}; it must be a list of at least one "
        "phase.Phase."
      )
    names = [one.name for one in self.phases]
    if len(set(names)) < len(names):
      raise ValueError(f"`Staged.phases` are named {names}. Give each its own name.")
    for number, one in enumerate(self.phases):
      for owner in one.owners:
        # What has a slash is the folder of another run.
        if owner not in names[:number] and "/" not in owner:
          raise ValueError(
            f"`Phase.start` of {one.name!r} reads {owner!r}, which is no phase before "
            f"it (those are {names[:number]}) and no folder, which has a slash."
          )

  def scores(self) -> Sequence[tuple[str, Any, str | None]]:
    return [
      (
        "`BEST_METRIC`" if one.metric is None else f"`Phase.metric` of {one.name!r}",
        one.task if one.judge is None else one.judge,
        one.metric,
      )
      for one in self.phases
      if one.measure is None and one.output is OWN
    ]

  def next(self, done: Sequence[Result]) -> Phase | None:
    return self.phases[len(done)] if len(done) < len(self.phases) else None

"""Teachers of single tasks, a prompt of all tasks that learns from them, then a target.

  teach_NAME   a prompt for each source task alone
  teachers     no step: their tables as one prompt, chosen by the task
  joint        shared[P H] * (left[k] @ right[k]) on the mixture of the sources, under
               cross-entropy and what the teachers say
  target       shared * (row x width): from the shared table and the mean of the factors

Wang et al., 2023, "Multitask Prompt Tuning Enables Parameter-Efficient Transfer
Learning" (arXiv 2303.02861), section 3. Factors may be scaled by c and 1 / c without
changing their product, so they are balanced before their mean is taken (our choice).
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prompt_tuning.procedures.phase import Phase, Procedure, Result
from prompt_tuning.procedures.surgery import (
  Balanced,
  Concat,
  Expression,
  MeanOver,
  Tile,
)

TABLE = "prompt/parameterise/prompt"
TABLES = "prompt/parameterise/table"
SHARED = "prompt/parameterise/shared"
FACTORS = "prompt/parameterise/left", "prompt/parameterise/right"
SCALE = "prompt/transforms_0"
# The name by which the objective of the joint phase calls its teacher.
TEACHER = "source"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Taught(Procedure):
  """The run's own task, prompt and objective are those of the target.

  Attributes:
    sources: name -> task, each a word; their order numbers them.
    mixture: makes one task of them, called with `tasks`.
    teacher: the sentence of one teacher, a free table. teachers: that of all, tables
      by task. joint: that of the joint phase. Both count the tasks of `sources`.
    objective: of the joint phase; it calls its teacher "source".
    groups: of the joint phase's optimiser.
    steps: of each teacher. joint_steps: of the joint phase. None for the run's own.
    metric: the validation score that chooses in all of these.
    balance: give left factors a root mean square of 1 before the mean is taken.
  """

  sources: Mapping[str, Any]
  mixture: Callable[..., Any]
  teacher: Any
  teachers: Any
  joint: Any
  objective: Any
  groups: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  steps: int | None = None
  joint_steps: int | None = None
  metric: str = "loss"
  balance: bool = True

  def __post_init__(self) -> None:
    fits = isinstance(self.sources, Mapping) and len(self.sources) > 1
    if not fits or not all(re.fullmatch(r"\w+", str(name)) for name in self.sources):
      raise ValueError(
        f"`Taught.sources` (SOURCE_TASKS) is {self.sources!r}; it must map at least "
        "two names, words of letters, digits and underscores, to tasks, such as "
        '{"topic": @topics/files.Files(), "mood": @mood/files.Files()}.'
      )

  def next(self, done: Sequence[Result]) -> Phase | None:
    phases = self._phases()
    return phases[len(done)] if len(done) < len(phases) else None

  def _phases(self) -> list[Phase]:
    names = [f"teach_{name}" for name in self.sources]
    mixed = self.mixture(tasks=tuple(self.sources.values()))
    shared = {"metric": self.metric, "groups": {}, "prompt": self.teacher}
    found = [
      Phase(name, task=task, steps=self.steps, **shared)
      for name, task in zip(names, self.sources.values(), strict=True)
    ]
    tables = Concat([Tile(f"{name}:{TABLE}", 1) for name in names], axis=0)
    together = {"task": mixed, "metric": self.metric}
    found.append(
      Phase(
        "teachers",
        prompt=self._counted(self.teachers),
        start={TABLES: tables},
        steps=0,
        groups={},
        **together,
      )
    )
    found.append(
      Phase(
        "joint",
        prompt=self._counted(self.joint),
        objective=self.objective,
        teachers={TEACHER: "teachers"},
        groups=self.groups,
        steps=self.joint_steps,
        **together,
      )
    )
    return [*found, Phase("target", start=self._target())]

  def _counted(self, prompt: Any) -> Any:
    """A sentence whose condition knows how many tasks there are."""
    condition = prompt.condition.clone(tasks=len(self.sources))
    return prompt.clone(condition=condition)

  def _target(self) -> dict[str, str | Expression]:
    left, right = (self._factor(side) for side in ("left", "right"))
    return {
      TABLE: f"joint:{SHARED}",
      # left [K G P 1] -> [G P]; right [K G 1 H] -> [G H].
      f"{SCALE}/row": MeanOver(MeanOver(left, 0), -1),
      f"{SCALE}/width": MeanOver(MeanOver(right, 0), -2),
    }

  def _factor(self, side: str) -> str | Expression:
    left, right = (f"joint:{path}" for path in FACTORS)
    if self.balance:
      return Balanced(left, right, side)
    return left if side == "left" else right

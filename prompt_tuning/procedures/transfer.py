"""A prompt that learns from another task's, as much as the two tasks are alike.

  source      the prompt of another task
  probe       a fresh prompt of the target, for a few steps
  of_source, of_target   what either changes in the model, on the target's inputs
  teacher     from the source's prompt, trained on the target
  student     a fresh prompt of the target: CE + similarity * weight * distillation

Zhong et al., 2022, "PANDA: Prompt Transfer Meets Knowledge Distillation for Efficient
Model Adaptation" (arXiv 2208.10160).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from prompt_tuning.procedures import similarity
from prompt_tuning.procedures.phase import Phase, Procedure, Result, result

TABLE = "prompt/parameterise/prompt"
# The name by which the objective calls its teacher.
TEACHER = "source"
KINDS = ("states", "rows", "one")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transfer(Procedure):
  """Attributes:
  source: the task that comes first. steps: on it; None for the run's own.
  metric: the validation score that chooses its prompt.
  objective: makes that of the student, called with `weights`, those of
    cross-entropy and of what the teacher says; it calls the teacher "source".
  weight: of what the teacher says where the tasks are the same.
  kind: "states" compares what prompts change, "rows" their mean rows; "one" takes 1.
  probe_steps: of the fresh prompt that is compared.
  measure: of "states".
  """

  source: Any
  objective: Callable[..., Any]
  steps: int | None = None
  metric: str = "loss"
  weight: float = 0.1
  kind: str = "states"
  probe_steps: int = 100
  measure: similarity.TaskEmbedding = similarity.TaskEmbedding()  # noqa: RUF009

  def __post_init__(self) -> None:
    if self.kind not in KINDS:
      raise ValueError(
        f"`Transfer.kind` (SIMILARITY) is {self.kind!r}; it must be one of {KINDS}."
      )

  def next(self, done: Sequence[Result]) -> Phase | None:
    names = [one.name for one in done]
    for phase in self._phases(done):
      if phase.name not in names:
        return phase
    return None

  def _phases(self, done: Sequence[Result]) -> Any:
    """In order; what a later one needs of an earlier, that one has given."""
    yield Phase("source", task=self.source, steps=self.steps, metric=self.metric)
    if self.kind != "one":
      yield Phase("probe", steps=self.probe_steps)
    if self.kind == "states":
      for name, owner in (("of_source", "source"), ("of_target", "probe")):
        yield Phase(name, start={"prompt": f"{owner}:prompt"}, measure=self.measure)
    yield Phase("teacher", start={"prompt": "source:prompt"})
    weights = 1.0, self.weight * max(0.0, self.similarity(done))
    objective = self.objective(weights=weights)
    yield Phase("student", objective=objective, teachers={TEACHER: "teacher"})

  def similarity(self, done: Sequence[Result]) -> float:
    """Of the two tasks, in [-1, 1]."""
    if self.kind == "one":
      return 1.0
    if self.kind == "rows":
      tables = (result(done, name).open()[TABLE] for name in ("source", "probe"))
      return similarity.cosine(*map(similarity.rows, tables))
    pair = (
      result(done, name).arrays[similarity.NAME] for name in ("of_source", "of_target")
    )
    return similarity.cosine(*pair)

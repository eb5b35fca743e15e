"""One phase: the run itself."""

import dataclasses
from collections.abc import Sequence

from prompt_tuning.procedures.phase import Phase, Procedure, Result


@dataclasses.dataclass(frozen=True)
class Plain(Procedure):
  """The run as it is without a procedure, in a folder of its own.

  Attributes:
    name: of its one phase.
  """

  name: str = "train"

  def next(self, done: Sequence[Result]) -> Phase | None:
    return None if done else Phase(self.name)

"""What this process knows of how a product came about; no part of what is saved."""

import dataclasses
from collections.abc import Callable
from typing import Any

from prompt_tuning.engine.listed import Rows


@dataclasses.dataclass(frozen=True)
class Made:
  """Attributes:
  history: a row for each line of metrics.
  loaded: the backbone, or None where it is not known.
  gin: makes the text of a run that would give the same, or raises ValueError saying
    why there is none; None where nothing is known.
  """

  history: Rows = dataclasses.field(default_factory=Rows)
  loaded: Any = None
  gin: Callable[[], str] | None = None

  @property
  def light(self) -> "Made":
    """What of it another process may have."""
    return Made(self.history)

"""Rows with named columns that are in memory: frames, records, files already read."""

import dataclasses
from typing import Any

from prompt_tuning.data.lists import Lists


@dataclasses.dataclass(frozen=True)
class Tabular(Lists):
  """Pairs that two templates made of rows, so that a card can say them.

  Attributes:
    inputs, targets: templates, column names in braces; see `data.files.Files`.
  """

  inputs: str = dataclasses.field(default="{text}", kw_only=True)
  targets: str = dataclasses.field(default="{label}", kw_only=True)


def texts_of(values: dict[str, Any]) -> dict[str, Any]:
  """A row's values as files spell them: numbers as texts; lists stay as they are."""
  return {str(name): _text(value) for name, value in values.items()}


def _text(value: Any) -> Any:
  if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
    value = value.item()
  if isinstance(value, float) and value != value:
    return None
  return str(value) if isinstance(value, bool | int | float) else value

"""What counts as a list of texts: lists, tuples, arrays of one dimension, columns."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from prompt_tuning.data.texts import no_text, short


def items(value: Any, argument: str, what: str = "a list") -> list[Any]:
  """The items of a list, a tuple, a numpy array or a column of a data frame, in order.

  Args:
    value: what was given. argument: who gave it, for messages. what: what fits.

  Raises:
    ValueError: for a text, which is no list of its letters; for a set or a mapping,
      whose order says nothing; for a generator, which can be read only once; and for
      anything else.
  """
  if isinstance(value, np.ndarray) or _is_column(value):
    array = np.asarray(value)
    if array.ndim:
      return array.tolist()
  elif isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
    return list(value)
  if isinstance(value, str):
    hint = "A text is no list of its letters: put it in square brackets."
  elif hasattr(value, "__iter__"):
    hint = "Put list(...) around it."
  else:
    hint = "Give a list."
  raise ValueError(f"`{argument}` must be {what}, got {short(value)}. {hint}")


def _is_column(value: Any) -> bool:
  """Whether a value is a column (pandas, polars) or an array of another library."""
  return hasattr(value, "__array__") and getattr(value, "ndim", 1) == 1


def labels(value: Any, argument: str) -> tuple[str, ...]:
  """The labels of a task as texts; 0 is "0", True is "True", as files spell them.

  Raises:
    ValueError: unless these are two or more different texts.
  """
  what = "two or more different strings"
  found = tuple(_label(label, argument) for label in items(value, argument, what))
  if len(set(found)) != len(found) or len(found) < 2:
    raise ValueError(
      f"`{argument}` must be {what}, got {short(list(found))}. Leave it None for a "
      "task without classes."
    )
  return found


def _label(value: Any, argument: str) -> str:
  if isinstance(value, bool | int | np.bool_ | np.integer):
    return str(value)
  if not isinstance(value, str) or not value.strip():
    raise ValueError(
      f"`{argument}` holds {short(value)}; each must be a text, spelled as the targets "
      "are. Put it in quotes."
    )
  fault = no_text(value)
  if fault:
    raise ValueError(f"`{argument}` holds {short(value)}, which has {fault}.")
  return str(value)

"""Vectors that examples bring along: a column of a table, or an array beside the file.

A column holds a list of numbers: in JSONL as such, in TSV and CSV written as JSON does,
"[0.5, -1, 2e-3]". An array is a .npy of shape [N, C] whose row i belongs to row i of
the file, whatever of the file is left out later; it stays on disk until rows are used.
"""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Float

from prompt_tuning.core import files
from prompt_tuning.data.texts import short

Vector = Float[np.ndarray, " C"]


def parsed(value: Any, where: str, argument: str) -> Vector:
  """The vector that a column holds.

  Args:
    value: a list of numbers, or its text. where: row and column, for messages.
    argument: who names the column.

  Raises:
    ValueError: for anything else, and for numbers that are not finite.
  """
  found = value
  if isinstance(value, str):
    try:
      found = json.loads(value)
    except (ValueError, RecursionError):
      found = None
  try:
    if not isinstance(found, list) or any(isinstance(x, bool | list) for x in found):
      raise ValueError
    with np.errstate(over="ignore"):
      vector_C = np.array(found, np.float32)
    if not vector_C.size or not np.isfinite(vector_C).all():
      raise ValueError
  except (TypeError, ValueError, OverflowError):
    raise ValueError(
      f"{where} of `{argument}` holds {short(value)}; it must be a list of finite "
      "numbers, such as [0.5, -1, 2e-3]."
    ) from None
  return vector_C


@dataclasses.dataclass(frozen=True)
class Vectors:
  """An array [N C] whose rows belong to those of a file.

  Attributes:
    array: as it lies on disk. path: where. argument: who names it, for messages.
  """

  array: np.ndarray
  path: str
  argument: str

  def row(self, number: int) -> Vector:
    """The vector of a row, counted from 0.

    Raises:
      ValueError: if there is none, or it holds a number that is not finite.
    """
    if number >= len(self.array):
      self.check_count(number + 1, "at least ")
    vector_C = np.asarray(self.array[number], np.float32)
    if not np.isfinite(vector_C).all():
      raise ValueError(
        f"`{self.argument}` is {self.path!r}, whose row {number} holds a number that "
        "is not finite. Vectors must be finite."
      )
    return vector_C

  def check_count(self, rows: int, about: str = "") -> None:
    """Raises ValueError unless there is one vector for each row of the file."""
    if rows != len(self.array):
      raise ValueError(
        f"`{self.argument}` is {self.path!r} of {len(self.array)} rows, but the file "
        f"beside it has {about}{rows}. Give one vector for each row, in its order."
      )


def opened(path: str, argument: str) -> Vectors:
  """An array of vectors; a local one is mapped and not read.

  Raises:
    ValueError: if there is no such file, or it holds no array [N, C] of numbers.
  """
  try:
    if files.is_remote(path):
      with files.at(path).open("rb") as file:
        array = np.load(file, allow_pickle=False)
    else:
      if not pathlib.Path(path).is_file():
        raise FileNotFoundError("there is no such file")
      array = np.load(path, mmap_mode="r", allow_pickle=False)
  except (OSError, ValueError, EOFError) as error:
    reason = str(error).split("\n")[0].rstrip(".")
    raise ValueError(
      f"`{argument}` is {path!r}, which cannot be read: {reason}. It must be a .npy of "
      "numbers [N, C], as numpy.save writes it."
    ) from None
  shape = getattr(array, "shape", None)
  if shape is None or len(shape) != 2 or 0 in shape or array.dtype.kind not in "fiu":
    kind = "several arrays" if shape is None else f"{array.dtype} {list(shape)}"
    raise ValueError(
      f"`{argument}` is {path!r}, which holds {kind}; it must hold numbers [N, C], one "
      "row for each of the file's."
    )
  return Vectors(array, path, argument)

"""What a phase gave, on disk: `result.json`, and arrays beside it.

The JSON file is written last of all: where it stands, the phase is done.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import numpy as safetensors_numpy

from prompt_tuning.core import files
from prompt_tuning.core import trainable as branches
from prompt_tuning.core.folders import current
from prompt_tuning.engine import best as kept
from prompt_tuning.engine import card as cards
from prompt_tuning.engine import product, records
from prompt_tuning.procedures.phase import Result

NAME, ARRAYS = "result.json", "arrays.safetensors"
FORMAT = "prompt_tuning/phase/1"


def write(
  folder: Any,
  name: str,
  steps: int,
  step: int,
  scores: Mapping[str, float],
  arrays: Mapping[str, np.ndarray] | None = None,
) -> None:
  """Says that a phase is done, and what it gave.

  Args:
    folder: of the phase. steps: the most it could take. step: of its product.
  """
  said: dict[str, Any] = {"format": FORMAT, "name": name, "steps": steps, "step": step}
  plain = {key: float(value) for key, value in scores.items()}
  said["scores"] = {k: v if math.isfinite(v) else None for k, v in plain.items()}
  if arrays:
    held = {k: np.ascontiguousarray(v) for k, v in arrays.items()}
    data = safetensors_numpy.save(held)
    files.write_bytes(folder / ARRAYS, data)
    said["arrays"] = hashlib.sha256(data).hexdigest()
  files.write_text(folder / NAME, json.dumps(said, indent=2, allow_nan=False) + "\n")


def read(folder: Any, name: str) -> Result | None:
  """The result of a phase; None where it is not done.

  Raises:
    ValueError: if what stands there is damaged, or of another phase.
  """
  path = folder / NAME
  if not path.is_file():
    return None
  fix = "Remove that folder and all later ones to take the phase again."
  try:
    found = records.read_object(path)
    if found.get("format") != FORMAT or found.get("name") != name:
      raise records.DamagedError(f"it is no result of the phase {name!r}")
    scores = found.get("scores")
    steps, step = found.get("steps"), found.get("step")
    if not isinstance(scores, dict) or not all(map(records.is_step, (steps, step))):
      raise records.DamagedError("it holds no steps and scores")
    numbers = [value for value in scores.values() if value is not None]
    if not all(map(records.is_number, numbers)):
      raise records.DamagedError("its scores are no numbers")
    arrays = _arrays(folder, found.get("arrays"))
  except records.DamagedError as error:
    raise ValueError(f"{str(path)!r} is damaged ({error}). {fix}") from error
  there = folder / kept.PRODUCT
  shapes: dict[str, tuple[int, ...]] = {}
  if current(there, product.CARD).is_file():
    card = cards.read(current(there, product.CARD), product.FORMAT)
    shapes = {key: tuple(value) for key, value in card["shapes"].items()}
  elif steps:
    raise ValueError(f"{str(there)!r} is gone, on which later phases stand. {fix}")
  return Result(
    name,
    steps,
    step,
    {key: math.nan if value is None else value for key, value in scores.items()},
    arrays,
    shapes,
    lambda: _tensors(there),
  )


def _arrays(folder: Any, digest: Any) -> dict[str, np.ndarray]:
  if digest is None:
    return {}
  try:
    data = (folder / ARRAYS).read_bytes()
  except OSError as error:
    raise records.DamagedError(f"{ARRAYS}: {error.strerror}") from error
  if hashlib.sha256(data).hexdigest() != digest:
    raise records.DamagedError(f"{ARRAYS} is not what it was")
  return safetensors_numpy.load(data)


def _tensors(folder: Any) -> dict[str, np.ndarray]:
  made = product.load(folder)
  return {**branches.flatten(made.frozen), **branches.flatten(made.trainable)}

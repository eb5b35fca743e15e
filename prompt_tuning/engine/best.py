"""The product of the best step, kept twice: as MODEL_DIR/prompt and by the checkpoints.

`prompt/` is handed on, moved and deleted; what a resumed run must know of its earlier
part lies with the checkpoints. Only JSON and the heads of safetensors are read here.
"""

from collections.abc import Callable
from typing import Any

import safetensors

from prompt_tuning.core import files
from prompt_tuning.core.folders import current, whole_folder
from prompt_tuning.engine import records
from prompt_tuning.engine.loop import Best

PRODUCT, COPY = "prompt", "checkpoints/best"
_FILES = ("prompt.safetensors", "card.json")


def save(folder: Any, product: Any) -> None:
  """Writes a product into both places of a MODEL_DIR."""
  product.save(folder / COPY, ours=True)
  product.save(folder / PRODUCT, ours=True)


def earlier(folder: Any, first: int, say: Callable[[str], None]) -> Best:
  """The best of the part of a run that is not repeated from step `first` on.

  Its product is put back where one of the places lacks it, bit for bit; `say` is told
  of what was damaged or put back. Without scores where there is none.
  """
  if not first:
    return Best()
  found: dict[str, Best] = {}
  for place in (PRODUCT, COPY):
    try:
      best = _read(folder / place)
    except records.DamagedError as error:
      say(f"{folder / place} is damaged ({error}).")
      continue
    # Steps after the checkpoint are taken again, and evaluated again.
    if best is not None and best.step <= first:
      found[place] = best
  if not found:
    return Best()
  source = max(found, key=lambda place: found[place].step)
  best = found[source]
  for place in (PRODUCT, COPY):
    same = place in found and found[place].step == best.step
    if same or _later(folder / place, first):
      continue
    copy(folder / source, folder / place)
    if place == PRODUCT:
      say(f"{folder / PRODUCT} is put back from step {best.step}.")
  return best


def holds(folder: Any, step: int) -> bool:
  """Whether MODEL_DIR/prompt is the product of a step."""
  try:
    best = _read(folder / PRODUCT)
  except records.DamagedError:
    return False
  return best is not None and best.step == step


def _later(folder: Any, first: int) -> bool:
  """Whether a product there is whole, and of a step that is still to come."""
  try:
    best = _read(folder)
  except records.DamagedError:
    return False
  return best is not None and best.step > first


def _read(folder: Any) -> Best | None:
  """Step and scores of the product in a folder; None where there is no product.

  Raises:
    DamagedError: if its files are not whole or do not fit each other.
  """
  path = current(folder, "card.json")
  if not path.is_file():
    return None
  card = records.read_object(path)
  step, scores = card.get("step"), card.get("scores")
  if not records.is_step(step):
    raise records.DamagedError(f"card.json says step {step!r}")
  # A run without validation has no scores.
  if scores != {} and not records.is_scores(scores):
    raise records.DamagedError(f"card.json says scores {scores!r}")
  if _shapes(current(folder, "prompt.safetensors")) != card.get("shapes"):
    raise records.DamagedError("prompt.safetensors is not what card.json says")
  return Best(step, scores or None)


def _shapes(path: Any) -> dict[str, list[int]]:
  """Shapes by name in a file of tensors, from its head alone where it is near."""
  try:
    if files.is_remote(path):
      tensors = safetensors.deserialize(path.read_bytes())
      return {name: list(one["shape"]) for name, one in tensors}
    with safetensors.safe_open(str(path), framework="np") as opened:
      return {name: opened.get_slice(name).get_shape() for name in opened.keys()}
  except (safetensors.SafetensorError, OSError) as error:
    raise records.DamagedError(f"prompt.safetensors: {error}") from error


def copy(source: Any, target: Any) -> None:
  """Puts the files of a product into another folder, whole."""
  with whole_folder(target, lambda folder: _FILES) as aside:
    for name in _FILES:
      (aside / name).write_bytes(current(source, name).read_bytes())

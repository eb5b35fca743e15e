"""What a run has left, read as data."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from prompt_tuning import api
from prompt_tuning.core import files
from prompt_tuning.engine.listed import Rows
from prompt_tuning.engine.product import Product

# Predictions that are read; more are left out, which is said.
MOST = 100_000


@dataclasses.dataclass(frozen=True)
class Run:
  """Attributes:
  folder: MODEL_DIR, or a prompt's own folder. product: its prompt, or None.
  history: lines of metrics. split: whose predictions, or None.
  records: those predictions. scores: of that split.
  """

  folder: Any
  product: Product | None
  history: Rows
  split: str | None = None
  records: Sequence[dict[str, Any]] = ()
  scores: dict[str, float] = dataclasses.field(default_factory=dict)


def read(path: str, split: str | None = None) -> Run:
  """A run's folder, and the predictions that `eval` wrote into its folder `eval`.

  Args:
    path: MODEL_DIR, or a `prompt/` folder. split: whose predictions; None for the last
      that were written.

  Raises:
    ValueError: if it holds no prompt, or no predictions of the split that is asked for.
  """
  folder = files.at(path)
  if not folder.is_dir():
    raise ValueError(f"{path!r} is no folder. Give the MODEL_DIR of a run.")
  product = api.load_prompt(path)
  found = sorted(
    (folder / "eval").glob("predictions-*.jsonl"), key=lambda p: p.stat().st_mtime
  )
  names = [file.name[len("predictions-") : -len(".jsonl")] for file in found]
  if split is not None and split not in names:
    raise ValueError(
      f"{path!r} holds no predictions of the split {split!r} (there are "
      f"{names or 'none'}). Run: python -m prompt_tuning.eval {path} --split {split}"
    )
  if not names:
    return Run(folder, product, product.history)
  split = split or names[-1]
  records = predictions(folder / "eval" / f"predictions-{split}.jsonl")
  place = folder / "eval" / f"metrics-{split}.json"
  scores = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}
  return Run(folder, product, product.history, split, records, scores)


def predictions(path: Any) -> list[dict[str, Any]]:
  """Records of a predictions file with an input, a target and a prediction each.

  Raises:
    ValueError: naming the line of what is none.
  """
  found = []
  for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
    try:
      record = json.loads(line)
      texts = [record[name] for name in ("input", "target", "prediction")]
    except (ValueError, KeyError, TypeError) as error:
      raise ValueError(
        f"{str(path)!r} line {number} is no prediction of eval. Run eval again."
      ) from error
    if not all(isinstance(text, str) for text in texts):
      raise ValueError(f"{str(path)!r} line {number} holds no texts. Run eval again.")
    found.append(record)
    if len(found) == MOST:
      break
  return found

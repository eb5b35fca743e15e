"""What predictions say: confusion, scores of each class, calibration, examples."""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from prompt_tuning.engine.listed import Rows

Record = Mapping[str, Any]
# Classes that a matrix shows; the rest stand together.
MOST_CLASSES = 16
OTHER = "(other)"
BINS = 10


@dataclasses.dataclass(frozen=True)
class Confusion:
  """Attributes:
  names: of the classes. counts: rows are targets, columns predictions [K K].
  """

  names: Sequence[str]
  counts: Int[np.ndarray, "K K"]


def confusion(records: Sequence[Record], labels: Sequence[str] | None) -> Confusion:
  """Counts of target and prediction; classes past the commonest stand together."""
  counts = collections.Counter()
  for record in records:
    counts[record["target"]] += 1
  known = list(labels or ())
  named = known if 0 < len(known) <= MOST_CLASSES else []
  if not named:
    named = [name for name, _ in counts.most_common(MOST_CLASSES)]
  seen = {r[side] for r in records for side in ("target", "prediction")}
  if seen - set(named):
    named = [*named, OTHER]
  place = {name: i for i, name in enumerate(named)}
  found = np.zeros((len(named), len(named)), np.int64)
  for record in records:
    row, column = (
      place.get(record[side], len(named) - 1) for side in ("target", "prediction")
    )
    found[row, column] += 1
  return Confusion(named, found)


def by_class(matrix: Confusion) -> Rows:
  """Precision, recall and F1 of each class in percent, and how many there are.

  precision = right / predicted, recall = right / there, F1 their harmonic mean.
  """
  rows = Rows()
  for place, name in enumerate(matrix.names):
    right = int(matrix.counts[place, place])
    there = int(matrix.counts[place].sum())
    said = int(matrix.counts[:, place].sum())
    rows.append(
      {
        "class": name,
        "there": there,
        "predicted": said,
        "precision": _percent(right, said),
        "recall": _percent(right, there),
        "F1": _percent(2 * right, said + there),
      }
    )
  return rows


def _percent(part: int, whole: int) -> float | None:
  return round(100 * part / whole, 1) if whole else None


def probabilities(record: Record) -> dict[str, float] | None:
  """Label -> probability: the labels' log-probabilities made to sum to 1.

  None for a record that has none, or where one is not finite.
  """
  scores = record.get("scores")
  if not isinstance(scores, Mapping) or not scores:
    return None
  if not all(isinstance(x, int | float) and math.isfinite(x) for x in scores.values()):
    return None
  most = max(scores.values())
  raised = {name: math.exp(value - most) for name, value in scores.items()}
  total = sum(raised.values())
  return {name: value / total for name, value in raised.items()}


@dataclasses.dataclass(frozen=True)
class Calibration:
  """Attributes:
  sure: mean probability of the answers in each bin. right: share that is right.
  counts: answers in it; empty bins are left out.
  error: sum over bins of counts * |right - sure| / all (Guo et al., 2017, ECE).
  """

  sure: Float[np.ndarray, " K"]
  right: Float[np.ndarray, " K"]
  counts: Int[np.ndarray, " K"]
  error: float


def calibration(records: Sequence[Record]) -> Calibration | None:
  """Whether answers are right as often as they are sure; None without scores."""
  pairs = []
  for record in records:
    found = probabilities(record)
    if found and record["prediction"] in found:
      right = record["prediction"] == record["target"]
      pairs.append((found[record["prediction"]], right))
  if not pairs:
    return None
  sure, right = np.array(pairs, np.float64).T
  bins = np.minimum((sure * BINS).astype(int), BINS - 1)
  kept = [k for k in range(BINS) if (bins == k).any()]
  counts = np.array([(bins == k).sum() for k in kept])
  mean_sure = np.array([sure[bins == k].mean() for k in kept])
  mean_right = np.array([right[bins == k].mean() for k in kept])
  error = float((counts * np.abs(mean_right - mean_sure)).sum() / len(pairs))
  return Calibration(mean_sure, mean_right, counts, error)


def examples(records: Sequence[Record], count: int) -> tuple[Rows, Rows]:
  """The answers that are worst, and those that are surest, with their probabilities.

  Worst: the target's probability is smallest; without scores, those that are wrong.
  """
  rows = []
  for record in records:
    found = probabilities(record) or {}
    rows.append(
      {
        "input": record["input"],
        "target": record["target"],
        "prediction": record["prediction"],
        "p(target)": found.get(record["target"]),
        "p(prediction)": found.get(record["prediction"]),
      }
    )
  scored = [row for row in rows if row["p(target)"] is not None]
  if not scored:
    wrong = [row for row in rows if row["target"] != row["prediction"]]
    return Rows(wrong[:count]), Rows()
  worst = sorted(scored, key=lambda row: row["p(target)"])[:count]
  surest = sorted(scored, key=lambda row: -(row["p(prediction)"] or 0))[:count]
  return Rows(worst), Rows(surest)

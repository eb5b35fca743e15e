"""Prune units of the backbone under a prompt, then train the prompt again.

Train the prompt; attribute the answers to units; for each ratio, mask the units of each
layer that did least and look at validation; take the largest ratio that loses no more
than `tolerance` against the whole backbone; train the prompt on from where it is, under
that mask. Yang et al., 2024, "SKIP" (arXiv 2404.11916). The backbone's weights never
change: a mask of zeros does what slicing both kernels of a layer would do.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prompt_tuning.procedures.attribution import Attribution
from prompt_tuning.procedures.phase import Phase, Procedure, Result, result
from prompt_tuning.procedures.prune_rewind import ORDERS
from prompt_tuning.procedures.surgery import Given


@dataclasses.dataclass(frozen=True)
class PruneUnits(Procedure):
  """Attributes:
  ratios: shares of a layer's units that are masked, each tried, in rising order.
  attribution: the measurement; it names the leaves of the masks [G 1 J].
  metric: the validation score that chooses (lower where its name holds "loss").
  tolerance: what of that score a ratio may lose, in its units.
  multiple: what the units that stay in a layer are a multiple of.
  order: what goes first: "importance" the least, "reversed" the most, "random".
  steps: of the second training; None for the run's own, 0 for none.
  """

  ratios: Sequence[float]
  attribution: Attribution
  metric: str = "loss"
  tolerance: float = 0.0
  multiple: int = 1
  order: str = "importance"
  steps: int | None = None

  def __post_init__(self) -> None:
    rising = list(self.ratios) == sorted(self.ratios)
    if not self.ratios or not all(0 <= r < 1 for r in self.ratios) or not rising:
      raise ValueError(
        f"`PruneUnits.ratios` (RATIOS) is {list(self.ratios)}; it must hold shares "
        "from 0 to below 1, in rising order."
      )
    if self.order not in ORDERS:
      raise ValueError(
        f"`PruneUnits.order` (PRUNE_ORDER) is {self.order!r}; it must be one of "
        f"{ORDERS}."
      )
    if self.multiple < 1 or self.tolerance < 0:
      raise ValueError(
        "`PruneUnits.multiple` (UNITS_MULTIPLE) must be at least 1 and `tolerance` at "
        f"least 0, got {self.multiple} and {self.tolerance}."
      )

  def next(self, done: Sequence[Result]) -> Phase | None:
    names = [one.name for one in done]
    if "whole" not in names:
      return Phase("whole")
    whole = {"prompt": "whole:prompt"}
    if "score" not in names:
      return Phase("score", start=whole, measure=self.attribution)
    for ratio in self.ratios:
      if named(ratio) not in names:
        return Phase(named(ratio), start={**whole, **self._masks(done, ratio)}, steps=0)
    if "final" in names:
      return None
    masks = self._masks(done, self.chosen(done))
    return Phase("final", start={**whole, **masks}, steps=self.steps)

  def _masks(self, done: Sequence[Result], ratio: float) -> Mapping[str, Any]:
    found = result(done, "score").arrays
    return {
      path: Given(units(found[path], ratio, self.multiple, self.order))
      for path in self.attribution.masks
    }

  def chosen(self, done: Sequence[Result]) -> float:
    """The largest ratio that loses no more than `tolerance`; the first where all do.

    Raises:
      ValueError: if validation does not give `metric`.
    """
    sign = 1 if "loss" in self.metric else -1
    scores = {one.name: one.scores.get(self.metric, math.nan) for one in done}
    if math.isnan(scores["whole"]):
      raise ValueError(
        f"`PruneUnits.metric` is {self.metric!r}, which no validation gave: the task "
        "must have a validation split, and BEST_METRIC name one of its scores."
      )
    most = sign * scores["whole"] + self.tolerance
    fit = [ratio for ratio in self.ratios if sign * scores[named(ratio)] <= most]
    return max(fit, default=self.ratios[0])


def named(ratio: float) -> str:
  """The phase that looks at a ratio."""
  return f"masked_{round(1000 * ratio):03d}"


def units(
  scores: np.ndarray, ratio: float, multiple: int = 1, order: str = "importance"
) -> np.ndarray:
  """A mask [G 1 J] that keeps the best (1 - ratio) J units of each layer.

  The count that stays is rounded up to a multiple, and to J at the most.

  Args:
    scores: [G 1 J]. order: of `ORDERS`.
  """
  J = scores.shape[-1]
  kept = J - math.floor(ratio * J + 1e-9)
  kept = min(J, math.ceil(kept / multiple) * multiple)
  if order == "random":
    scores = np.random.default_rng(0).random(scores.shape)
  ranked = np.argsort(-scores if order == "reversed" else scores, -1, kind="stable")
  mask = np.ones(scores.shape, np.float32)
  np.put_along_axis(mask, ranked[..., : J - kept], 0.0, -1)
  return mask

"""Prune a prompt, rewind what is left, train it again (Ma et al., 2022, "XPrompt").

Train the whole prompt; score its positions; for each ratio, mask the lowest, put the
others back to where the first training ended, and train again; take the best by the
validation score. Score the pieces of what is left, as that run trained them, and do the
same. Then train the best mask once more from the same point.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from prompt_tuning.procedures.importance import Importance
from prompt_tuning.procedures.phase import Phase, Procedure, Result, result
from prompt_tuning.procedures.surgery import Given, Take

LEVELS = ("positions", "pieces")
ORDERS = ("importance", "reversed", "random")


@dataclasses.dataclass(frozen=True)
class PruneRewind(Procedure):
  """Attributes:
  ratios: shares of what is left that a level prunes, each tried; 0 prunes nothing.
  metric: the validation score that chooses (lower where its name holds "loss").
  levels: of `LEVELS`, in order.
  steps: of each training but the first; None for the run's own.
  order: what goes first: "importance" the least, "reversed" the most, "random".
  importance: the measurement; it names the mask's leaf.
  final: whether the best mask is trained once more.
  prompt: the sentence, to drop pruned positions in the end: one phase more, without
    training, whose prompt is shorter; None leaves them masked.
  """

  ratios: Sequence[float]
  metric: str = "loss"
  levels: Sequence[str] = LEVELS
  steps: int | None = None
  order: str = "importance"
  importance: Importance = Importance()  # noqa: RUF009
  final: bool = True
  prompt: Any = None

  def __post_init__(self) -> None:
    if not self.ratios or not all(0 <= ratio < 1 for ratio in self.ratios):
      raise ValueError(
        f"`PruneRewind.ratios` is {list(self.ratios)}; it must hold shares from 0 to "
        "below 1: 1 would remove the whole prompt."
      )
    if not self.levels or not set(self.levels) <= set(LEVELS):
      raise ValueError(
        f"`PruneRewind.levels` is {list(self.levels)}; it must hold some of {LEVELS}."
      )
    if self.order not in ORDERS:
      raise ValueError(
        f"`PruneRewind.order` is {self.order!r}; it must be one of {ORDERS}."
      )

  def next(self, done: Sequence[Result]) -> Phase | None:
    for phase in self._phases(done):
      if phase.name not in [one.name for one in done]:
        return phase
    return None

  def scores(self) -> Sequence[tuple[str, Any, str | None]]:
    return [("`PruneRewind.metric`", None, self.metric)]

  def _phases(self, done: Sequence[Result]) -> Any:
    """The phases in order; what a later one needs of an earlier, that one has given."""
    yield Phase("whole")
    best = "whole"
    for level in self.levels:
      scored = f"score_{level}"
      yield Phase(scored, start={"prompt": f"{best}:prompt"}, measure=self.importance)
      found = result(done, scored).arrays
      names = []
      for ratio in self.ratios:
        name = f"{level}_{round(100 * ratio):02d}"
        names.append(name)
        yield self._again(name, pruned(found, level, ratio, self.order))
      best = self.best(done, names)
    if self.final:
      yield self._again("final", self._mask(done, best))
    if self.prompt is not None:
      yield self._dropped(done, "final" if self.final else best)

  def _again(self, name: str, mask_PK: np.ndarray) -> Phase:
    start = {"prompt": "whole:prompt", self.importance.mask: Given(mask_PK)}
    return Phase(name, start=start, steps=self.steps)

  def _mask(self, done: Sequence[Result], name: str) -> np.ndarray:
    return result(done, name).open()[self.importance.mask]

  def _dropped(self, done: Sequence[Result], name: str) -> Phase:
    kept = np.flatnonzero(self._mask(done, name).any(-1)).tolist()
    paths = [path for path in result(done, name).shapes if path.startswith("prompt/")]
    start = {path: Take(f"{name}:{path}", kept) for path in paths}
    shorter = self.prompt.clone(length=len(kept))
    return Phase("dropped", start=start, steps=0, prompt=shorter)

  def best(self, done: Sequence[Result], names: Sequence[str]) -> str:
    """Of some phases the one with the best score, the first of equal ones.

    Raises:
      ValueError: if none of them has that score.
    """
    sign = 1 if "loss" in self.metric else -1
    scores = [result(done, name).scores.get(self.metric, math.nan) for name in names]
    known = [(sign * s, i) for i, s in enumerate(scores) if not math.isnan(s)]
    if not known:
      raise ValueError(
        f"`PruneRewind.metric` is {self.metric!r}, which no validation gave: the task "
        "must have a validation split, and BEST_METRIC name one of its scores."
      )
    return names[min(known)[1]]


def pruned(
  found: dict[str, np.ndarray], level: str, ratio: float, order: str
) -> np.ndarray:
  """The mask [P K] after a share of what is left was pruned.

  A position that goes takes all its pieces along; floor(ratio * left) go.

  Args:
    found: what `Importance` gave. level: of `LEVELS`. order: of `ORDERS`.
  """
  mask_PK = np.array(found["mask"], np.float32)
  left = mask_PK.any(-1) if level == "positions" else mask_PK != 0
  places = np.flatnonzero(left)
  scores = np.asarray(found[level], np.float64).ravel()[places]
  if order == "random":
    ranked = np.random.default_rng(0).permutation(len(places))
  else:
    ranked = np.argsort(scores if order == "importance" else -scores, kind="stable")
  gone = places[ranked[: math.floor(ratio * len(places) + 1e-9)]]
  if level == "positions":
    mask_PK[gone] = 0
  else:
    mask_PK.ravel()[gone] = 0
  return mask_PK

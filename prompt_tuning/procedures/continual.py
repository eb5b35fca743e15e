"""Tasks one after the other, and what is kept of those before.

After each task the model is examined. The accuracy matrix a[t, i], t = 0..T, holds the
score on task i with what is held after t tasks; row 0 is before any. From it follow

  AA = mean_i a[T, i];  AA_t = mean_{i <= t} a[t, i];  diagonal = mean_i a[i, i]
  F = mean_{i < T} (max_{i <= t < T} a[t, i] - a[T, i])      forgetting
  BWT = mean_{i < T} (a[T, i] - a[i, i])                     backward transfer
  FWT = mean_{i > 1} (a[i - 1, i] - a[0, i])                 forward transfer, zero-shot
  LG = mean_i (a[i, i] - s_i)                                learning gain

where s_i is a run on task i alone with the same steps. Papers call FWT and LG both
"forward transfer".
"""

import abc
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from prompt_tuning.core.prompt import Together
from prompt_tuning.procedures.measure import Exam
from prompt_tuning.procedures.phase import (
  OWN,
  Phase,
  Procedure,
  Result,
  Table,
  result,
)

KNOWN = (
  "Each task keeps a prompt of its own and is asked with it (task id known at test): "
  "F and BWT are 0 by construction and FWT says nothing. Compare diagonal and LG."
)
UNKNOWN = "One prompt serves all tasks (no task id at test)."


@dataclasses.dataclass(frozen=True)
class Continual(Procedure):
  """What the ways of going on share; they say how a task is learned.

  Attributes:
    tasks: name -> task, in the order of learning. metric: the score of the matrix.
    order: names in another order; None for that of `tasks`.
    split: that exams ask. steps: of each task; None for the run's own.
    singles: also train each task alone, for LG.
    carry: branches that an exam asks and the next task goes on from; ("backbone",)
      where the whole model trains.
  """

  tasks: Mapping[str, Any]
  metric: str = "accuracy"
  order: Sequence[str] | None = None
  split: str = "validation"
  steps: int | None = None
  singles: bool = False
  carry: Sequence[str] = ("prompt",)

  def __post_init__(self) -> None:
    fits = isinstance(self.tasks, Mapping) and self.tasks
    if not fits or not all(re.fullmatch(r"\w+", str(name)) for name in self.tasks):
      names = list(self.tasks) if isinstance(self.tasks, Mapping) else self.tasks
      raise ValueError(
        f"`{type(self).__name__}.tasks` has the names {names!r}; it must map at least "
        "one name, a word of letters, digits and underscores, to a task."
      )
    if self.order is not None and sorted(self.order) != sorted(self.tasks):
      raise ValueError(
        f"`order` is {list(self.order)}; it must name each of {sorted(self.tasks)} "
        "once."
      )

  @property
  def names(self) -> tuple[str, ...]:
    """The tasks in the order of learning."""
    return tuple(self.tasks if self.order is None else self.order)

  # Whether each task keeps what was held after it, and is asked with that.
  apart = False

  @abc.abstractmethod
  def learning(self, t: int) -> Phase:
    """The phase that learns the t-th task, t = 1..T; its name is `learn_NAME`."""

  def next(self, done: Sequence[Result]) -> Phase | None:
    names = {one.name for one in done}
    return next((phase for phase in self._phases() if phase.name not in names), None)

  def _phases(self) -> Iterator[Phase]:
    yield self._exam("exam_0", self.names, OWN, {})
    for t, name in enumerate(self.names, 1):
      learned = self.learning(t)
      yield learned
      asked = (name,) if self.apart else self.names
      start = self._from(learned.name)
      yield self._exam(f"exam_{t}", asked, learned.prompt, start)
    for name in self.names if self.singles else ():
      yield self._learn(f"single_{name}", name)
      start = self._from(f"single_{name}")
      yield self._exam(f"exam_single_{name}", (name,), OWN, start)

  def _from(self, phase: str) -> dict[str, str]:
    return {branch: f"{phase}:{branch}" for branch in self.carry}

  def _learn(self, phase: str, name: str, **others: Any) -> Phase:
    return Phase(phase, task=self.tasks[name], steps=self.steps, **others)

  def _exam(self, phase: str, names: Sequence[str], prompt: Any, start: Any) -> Phase:
    exam = Exam({name: self.tasks[name] for name in names}, self.split)
    return Phase(phase, prompt=prompt, start=start, measure=exam)

  def scores(self) -> Sequence[tuple[str, Any, str | None]]:
    own, tasks = f"`{type(self).__name__}.metric`", [self.tasks[n] for n in self.names]
    best = [("`BEST_METRIC`", task, None) for task in tasks]
    return [*((own, task, self.metric) for task in tasks), *best]

  def product(self, done: Sequence[Result]) -> str | None:
    learned = [one.name for one in done if one.name.startswith("learn_")]
    return learned[-1] if learned else None

  def table(self, done: Sequence[Result]) -> Table | None:
    values = self.matrix(done)
    if values is None:
      return None
    alone = [self._score(done, f"exam_single_{name}", name) for name in self.names]
    found = figures(values, np.array(alone))
    if self.apart:
      found["FWT"] = math.nan
    rows = ["before any", *(f"after {name}" for name in self.names)]
    return Table(
      "accuracy-matrix",
      rows,
      self.names,
      values,
      found,
      (f"{self.metric} of {self.split}.", KNOWN if self.apart else UNKNOWN),
    )

  def _score(self, done: Sequence[Result], phase: str, name: str) -> float:
    if phase not in [one.name for one in done]:
      return math.nan
    scores = result(done, phase).scores
    if f"{name}/{self.metric}" not in scores:
      raise ValueError(
        f"`{type(self).__name__}.metric` is {self.metric!r}, which the task {name!r} "
        "does not give. It gives "
        f"{sorted(key.partition('/')[2] for key in scores if key.startswith(name))}; "
        "most need an OUTPUT (include a file of gin/outputs/)."
      )
    return scores[f"{name}/{self.metric}"]

  def matrix(self, done: Sequence[Result]) -> np.ndarray | None:
    """a [T + 1, T]; NaN where nobody has looked yet, None before the first exam."""
    if not done:
      return None
    values = np.full((len(self.names) + 1, len(self.names)), math.nan)
    for t in range(len(self.names) + 1):
      if f"exam_{t}" not in [one.name for one in done]:
        break
      for i, name in enumerate(self.names):
        if not self.apart or t == 0 or i + 1 == t:
          values[t, i] = self._score(done, f"exam_{t}", name)
        else:
          # What is held for a task does not change.
          values[t, i] = values[t - 1, i]
    return values


@dataclasses.dataclass(frozen=True)
class Sequential(Continual):
  """One prompt, carried from task to task."""

  def learning(self, t: int) -> Phase:
    name = self.names[t - 1]
    start = {} if t == 1 else self._from(f"learn_{self.names[t - 2]}")
    return self._learn(f"learn_{name}", name, start=start)


@dataclasses.dataclass(frozen=True)
class PerTask(Continual):
  """A fresh prompt for each task."""

  apart = True

  def learning(self, t: int) -> Phase:
    name = self.names[t - 1]
    return self._learn(f"learn_{name}", name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progressive(Continual):
  """A new prompt for each task in front of those before, which stay as they are.

  Razdaibiedina et al., 2023, "Progressive Prompts: Continual Learning for Language
  Models". After t tasks there are t P positions; the branch of a task is
  `prompt/of_NAME`.

  Attributes:
    prompt: the sentence of one task's prompt.
  """

  prompt: Any

  apart = True

  def __post_init__(self) -> None:
    super().__post_init__()
    if not hasattr(self.prompt, "clone"):
      raise ValueError(
        f"`Progressive.prompt` is {self.prompt!r}; it must be the sentence of one "
        "task's prompt. Include a method that has one, such as "
        "gin/methods/prompt_tuning.gin."
      )

  def learning(self, t: int) -> Phase:
    name, before = self.names[t - 1], self.names[: t - 1]
    parts = {
      f"of_{one}": self.prompt.clone(_deep_clone=True) for one in (name, *before[::-1])
    }
    start = {
      f"prompt/of_{one}": f"learn_{before[-1]}:prompt/of_{one}" for one in before
    }
    return self._learn(
      f"learn_{name}",
      name,
      prompt=Together(parts),
      trainable=(f"prompt/of_{name}",),
      start=start,
    )


def figures(values: np.ndarray, alone: np.ndarray) -> dict[str, float]:
  """What follows from an accuracy matrix, by the names of the head of this file.

  Args:
    values: a [T + 1, T]. alone: s [T]; NaN where no single run was made.
  """
  T = values.shape[1]
  own = np.array([values[i + 1, i] for i in range(T)])
  last = values[T]
  gone = [values[i + 1 : T, i].max() - last[i] for i in range(T - 1)]
  found = {
    "AA": last.mean(),
    "diagonal": own.mean(),
    "F": _mean(gone),
    "BWT": _mean(last[:-1] - own[:-1]),
    "FWT": _mean([values[i, i] - values[0, i] for i in range(1, T)]),
    "LG": (own - alone).mean(),
  }
  found |= {f"AA_{t}": values[t, :t].mean() for t in range(1, T + 1)}
  return {name: float(value) for name, value in found.items()}


def _mean(values: Any) -> float:
  return float(np.mean(values)) if len(values) else math.nan

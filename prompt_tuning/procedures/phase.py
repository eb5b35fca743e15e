"""A procedure and its phases: descriptions alone, which the engine carries out.

A procedure is a pure function of the results so far. So a run that was killed goes on
by asking it again: what was done is on disk, and what comes next follows from it.
"""

import abc
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from prompt_tuning.procedures.surgery import Expression, checked, place, reads

# What a phase takes from the run that it is part of.
OWN = "own"
KEEPS = ("best", "last")


@dataclasses.dataclass(frozen=True)
class Phase:
  """A part of a run: a training of its own, or a measurement without updates.

  What is left at None or `OWN` is the run's own.

  Attributes:
    name: a word; its folder is `phases/kk_NAME`.
    task: what is learned. method: a name for the card.
    prompt: `core.prompt.Prompt`; None for the bare model.
    objective: what is lowered. optimizer: how. groups: what single branches have of
      their own in it, in place of the run's; {} for nothing.
    trainable: branches that train. steps: how many steps.
    start: path of a branch -> where it comes from (see `procedures.surgery`; a text
      such as "source:prompt" is a copy; of paths that lie in each other the longest
      decides). What is not named is drawn as in any run.
    teachers: name -> an earlier phase, or the folder of a product, whose prompt is
      frozen as the branch `teacher/NAME`.
    keep: which step is the product, "best" or "last"; None for the best.
    metric: the validation score that chooses the best.
    judge: the task whose validation split chooses it; None for the phase's task.
    output: how validation is answered.
    measure: a `procedures.measure.Measure` or `Exam` in place of training.
  """

  name: str
  task: Any = None
  method: str | None = None
  prompt: Any = OWN
  objective: Any = None
  optimizer: Any = None
  groups: Mapping[str, Any] | None = None
  trainable: Sequence[str] | None = None
  steps: int | None = None
  start: Mapping[str, str | Expression] = dataclasses.field(default_factory=dict)
  teachers: Mapping[str, str] = dataclasses.field(default_factory=dict)
  keep: str | None = None
  metric: str | None = None
  judge: Any = None
  output: Any = OWN
  measure: Any = None

  def __post_init__(self) -> None:
    if not isinstance(self.name, str) or not re.fullmatch(r"\w+", self.name):
      raise ValueError(
        f"`Phase.name` is {self.name!r}; a phase is named by a word of letters, digits "
        "and underscores, such as 'source'."
      )
    if self.keep not in (None, *KEEPS):
      raise ValueError(
        f"`Phase.keep` of {self.name!r} is {self.keep!r}; it must be one of {KEEPS}."
      )
    if not isinstance(self.teachers, Mapping):
      raise ValueError(
        f"`Phase.teachers` of {self.name!r} is {self.teachers!r}; it must be a mapping "
        'such as {"source": "source"}, a name to a phase or a folder.'
      )
    start = checked(f"Phase.start of {self.name!r}", self.start)
    object.__setattr__(self, "start", start)

  @property
  def owners(self) -> frozenset[str]:
    """The phases and folders whose products it reads."""
    found = {place(one)[0] for e in self.start.values() for one in reads(e)}
    return frozenset(found | set(self.teachers.values()))


@dataclasses.dataclass(frozen=True)
class Result:
  """What a phase gave.

  Attributes:
    name: of the phase. steps: the most that it could take. step: that of its product.
    scores: of its product on the validation split, or those that an exam gave.
    arrays: what a measurement gave.
    shapes: path -> shape of each tensor of its product; empty without one.
    open: gives its product, path -> tensor; files are read when it is called.
  """

  name: str
  steps: int = 0
  step: int = 0
  scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
  arrays: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  shapes: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
  open: Callable[[], Mapping[str, np.ndarray]] = dict

  @property
  def trained(self) -> bool:
    """Whether it has a product."""
    return bool(self.shapes)


@dataclasses.dataclass(frozen=True)
class Table:
  """Numbers of a whole run, to print, to keep and to draw.

  Attributes:
    name: of its files. rows, columns: what the axes of `values` stand for.
    values: [rows, columns]; NaN where nothing was looked at.
    figures: what is computed from it: a name -> a number, NaN where it says nothing.
    notes: what a reader must know, in sentences.
  """

  name: str
  rows: Sequence[str]
  columns: Sequence[str]
  values: np.ndarray
  figures: Mapping[str, float] = dataclasses.field(default_factory=dict)
  notes: Sequence[str] = ()


class Procedure(abc.ABC):
  """What a subclass must give is `next`."""

  @abc.abstractmethod
  def next(self, done: Sequence[Result]) -> Phase | None:
    """The phase that follows those that are done; None at the end of the run.

    Args:
      done: results of all phases before, in order. Nothing else may decide.
    """

  def product(self, done: Sequence[Result]) -> str | None:
    """The phase whose product is that of the whole run: the last that trained."""
    trained = [result.name for result in done if result.trained]
    return trained[-1] if trained else None

  def scores(self) -> Sequence[tuple[str, Any, str | None]]:
    """(argument, task, score of its validation) of what is known from the start.

    The score is refused before the first phase where the task does not give it. The
    argument is named then. A task or score of None is the run's own.
    """
    return ()

  def table(self, done: Sequence[Result]) -> Table | None:
    """Numbers over all phases so far, or None."""
    del done
    return None


def result(done: Sequence[Result], name: str) -> Result:
  """The result of a phase by its name.

  Raises:
    ValueError: if no phase of that name is done.
  """
  for one in done:
    if one.name == name:
      return one
  raise ValueError(
    f"There is no phase {name!r} yet; done are {[one.name for one in done]}."
  )

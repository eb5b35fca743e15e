"""What an example brings besides its text, and what a prompt wants of it.

task       the number of its task
external   a vector that somebody else made of it
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from prompt_tuning.data.texts import short, some

Example = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Wants:
  """What a prompt reads of an example besides its text.

  Attributes:
    tasks: K, how many tasks it tells apart; 0 for none.
    width: C, of the vectors that it reads; 0 for none.
    names: of the tasks, in order, or () where nobody named them.
  """

  tasks: int = 0
  width: int = 0
  names: Sequence[str] = ()

  def task(self, value: Any, argument: str) -> int:
    """The number of a task that is given by its number or its name.

    Raises:
      ValueError: if it is neither.
    """
    if isinstance(value, str):
      if value in self.names:
        return list(self.names).index(value)
      if value.isdecimal() and value.isascii() and len(value) < 10:
        value = int(value)
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or not 0 <= value < self.tasks:
      raise ValueError(f"`{argument}` is {short(value)}; it must be {self.task_words}.")
    return int(value)

  @property
  def task_words(self) -> str:
    """What names a task."""
    numbers = f"a number from 0 to {self.tasks - 1}" if self.tasks > 1 else "0"
    return f"{numbers}, or one of {some(self.names)}" if self.names else numbers

  def vector(self, value: Any, argument: str) -> np.ndarray:
    """A vector [C], float32.

    Raises:
      ValueError: if it is no vector of that width.
    """
    shape = list(np.shape(value))
    if shape != [self.width]:
      raise ValueError(
        f"`{argument}` has a vector of shape {shape}, but the prompt reads vectors of "
        f"width {self.width} (CODE_WIDTH)."
      )
    return np.asarray(value, np.float32)

  def beside(
    self, count: int, task: Any = None, external: Any = None
  ) -> list[dict[str, Any]]:
    """What each of so many texts brings along, of the arguments of a call.

    Args:
      count: B, of texts. task: a number or a name for all texts, or one for each.
      external: vectors [B C].

    Raises:
      ValueError: for what is missing, does not fit, or is not read.
    """
    rows: list[dict[str, Any]] = [{} for _ in range(count)]
    if self.tasks or task is not None:
      for row, number in zip(rows, self._numbers(count, task), strict=True):
        row["task"] = np.int32(number)
    if self.width or external is not None:
      for row, vector_C in zip(rows, self._vectors(count, external), strict=True):
        row["external"] = vector_C
    return rows

  def numbered(
    self, examples: Sequence[Example], name: str, task: Any = None
  ) -> Sequence[Example]:
    """Examples of one task, with its number where a prompt wants one.

    Args:
      examples: which keep a number that they bring, unless `task` is given.
      name: of the task, by which it is known if nothing else says so.
      task: its number or name among those of the prompt (PROMPT_TASK), or None.
    """
    if not self.tasks:
      if task is None:
        return examples
      raise ValueError(
        f"`PROMPT_TASK` is {short(task)}, but the prompt tells no tasks apart. Leave "
        "it out."
      )
    if task is None and all("task" in example for example in examples):
      return examples
    if task is None and name not in self.names:
      raise ValueError(
        f"`PROMPT_TASK` is None, but the prompt tells {self.tasks} tasks apart, and "
        f"{name!r} is none of their names. Set it to {self.task_words}."
      )
    number = np.int32(self.task(name if task is None else task, "PROMPT_TASK"))
    return [{**example, "task": number} for example in examples]

  def _numbers(self, count: int, task: Any) -> list[int]:
    if not self.tasks:
      raise ValueError(
        f"`task` is {short(task)}, but the prompt tells no tasks apart. Leave it out."
      )
    if task is None:
      raise ValueError(
        f"`task` is missing: the prompt tells {self.tasks} tasks apart. Give "
        f"{self.task_words}, for all texts or for each."
      )
    if isinstance(task, str) or not np.ndim(task):
      task = task.item() if hasattr(task, "item") else task
      return [self.task(task, "task")] * count
    given = task.tolist() if hasattr(task, "tolist") else list(task)
    if len(given) != count:
      raise ValueError(
        f"`task` names {len(given)} tasks for {count} texts; give one for all, or one "
        "for each."
      )
    return [self.task(one, f"task[{i}]") for i, one in enumerate(given)]

  def _vectors(self, count: int, external: Any) -> np.ndarray:
    if not self.width:
      raise ValueError(
        "`external` is given, but the prompt reads no vectors. Leave it out."
      )
    if external is None:
      raise ValueError(
        f"`external` is missing: the prompt reads a vector of width {self.width} for "
        "each text."
      )
    try:
      found_BC = np.asarray(external, np.float32)
    except (TypeError, ValueError) as error:
      raise ValueError(f"`external` must be numbers [B, C]: {error}.") from error
    if found_BC.shape != (count, self.width) and (count or found_BC.size):
      raise ValueError(
        f"`external` must be one vector of width {self.width} for each of the {count} "
        f"texts, got shape {list(found_BC.shape)}."
      )
    if not np.isfinite(found_BC).all():
      raise ValueError("`external` holds numbers that are not finite.")
    return found_BC.reshape(count, self.width)


def wants(prompt: Any, names: Sequence[str] = ()) -> Wants:
  """What a prompt (`core.prompt`, or None) wants; names of others are left out."""
  if prompt is None:
    return Wants()
  fitting = tuple(names) if len(names) == prompt.tasks else ()
  return Wants(prompt.tasks, prompt.external_width, fitting)


def check(example: Example, wanted: Wants, where: str) -> None:
  """Raises ValueError unless an example brings what a prompt wants."""
  if wanted.tasks:
    if "task" not in example:
      raise ValueError(
        f"The prompt tells {wanted.tasks} tasks apart, but {where} says no task. Use a "
        "mixture (gin/tasks/mixture.gin), or name a column of numbers (TASK_COLUMN)."
      )
    if not 0 <= int(example["task"]) < wanted.tasks:
      raise ValueError(
        f"{where} belongs to task {int(example['task'])}, but the prompt knows the "
        f"tasks 0 to {wanted.tasks - 1} (TASKS)."
      )
  if wanted.width:
    if "external" not in example:
      raise ValueError(
        f"The prompt reads a vector of width {wanted.width} for each example, but "
        f"{where} brings none. Name a column (EXTERNAL_COLUMN) or an array "
        "(EXTERNAL_FILE)."
      )
    if np.shape(example["external"]) != (wanted.width,):
      raise ValueError(
        f"{where} brings a vector of shape {list(np.shape(example['external']))}, but "
        f"the prompt reads width {wanted.width} (CODE_WIDTH)."
      )


def checked(source: Any, wanted: Wants, split: str) -> Any:
  """Examples in memory, or a function that opens a stream, with `check` of each.

  Raises:
    ValueError: at once for examples in memory; for those of a stream as they are read.
  """
  if not (wanted.tasks or wanted.width):
    return source

  def each(examples: Iterable[Example]) -> Iterator[Example]:
    for number, example in enumerate(examples):
      check(example, wanted, f"example {number} of the split {split!r}")
      yield example

  if isinstance(source, Callable):
    return lambda: each(source())
  for _ in each(source):
    pass
  return source

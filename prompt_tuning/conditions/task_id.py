"""Which task an example belongs to, as a one-hot code.

The words behind it take a product with the code, so that a task that is absent from a
batch has a gradient of exactly zero, and nothing is scattered. Rows of one batch may
belong to different tasks.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Float

from prompt_tuning.core.context import Code, Context, Spec, pooled


class TaskId(nn.Module):
  """The task's number as a one-hot vector [R K].

  Attributes:
    tasks: K, how many tasks there are; they have the numbers 0 to K - 1.
  """

  needs: ClassVar[frozenset[str]] = frozenset({"task"})
  tasks: int

  def __post_init__(self) -> None:
    whole = isinstance(self.tasks, int) and not isinstance(self.tasks, bool)
    if not whole or self.tasks < 1:
      raise ValueError(
        f"`TaskId.tasks` (TASKS) must be a whole number from 1, got {self.tasks!r}."
      )
    super().__post_init__()

  def __call__(self, context: Context, spec: Spec, train: bool = False) -> Code:
    """The code; inside of a compiled program an unknown number selects nothing.

    Raises:
      ValueError: for an unknown number, where numbers are known.
    """
    check_numbers(context.task, self.tasks)
    return pooled(one_hot(context.task, self.tasks))


def one_hot(task_R: Array, tasks: int) -> Float[Array, "R K"]:
  """Ones at the tasks' numbers; a row of zeros for a number that no task has."""
  return jax.nn.one_hot(task_R, tasks)


def check_numbers(task_R: Array, tasks: int) -> None:
  """Raises ValueError for a number that no task has; a traced number passes."""
  if isinstance(task_R, jax.core.Tracer):
    return
  numbers_R = np.asarray(task_R)
  wrong = numbers_R[(numbers_R < 0) | (numbers_R >= tasks)]
  if wrong.size:
    raise ValueError(
      f"`task` is {int(wrong[0])}, but the prompt knows the tasks 0 to {tasks - 1} "
      "(TASKS)."
    )

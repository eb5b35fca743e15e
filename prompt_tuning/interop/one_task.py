"""The prompt of one task, out of a prompt that tells tasks apart, as free tables.

What numpy, PEFT and T5X hold is one table; task by task, such prompts are no more.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from prompt_tuning.core.context import Context
from prompt_tuning.core.places import KeysValues, Slots
from prompt_tuning.core.prompt import Prompt, Together
from prompt_tuning.data import given
from prompt_tuning.engine import conventions
from prompt_tuning.engine.product import Product
from prompt_tuning.interop import prompts
from prompt_tuning.parameterisers.dense import Dense


def of_task(prompt: Product, task: Any) -> Product:
  """What one task's rows are prompted with, as a product of its own.

  Args:
    prompt: one that reads the task of an example, and nothing else of it.
    task: its number, or its name where the card has names.

  Raises:
    ValueError: for a task that there is not, a prompt that tells none apart or reads
      its input, or places whose records are no tables of positions.
  """
  known = conventions.of(prompt.card)
  wants = given.wants(prompt.module, known.names)
  if not wants.tasks:
    raise ValueError(
      f"`task` is {task!r}, but the prompt tells no tasks apart. Leave it out."
    )
  number = wants.task(task, "task")
  if prompt.module.reads_text:
    raise ValueError(
      "This prompt reads its input too, so no fixed vectors do what it does for a task."
    )
  held = dict(prompts.handed(prompt, _row(number)).held)
  parts, branch = {}, {}
  for place, record in held.items():
    name = place.replace(".", "_")
    table_GPJ = _table(place, record)
    parts[name] = Prompt(table_GPJ.shape[1], Dense(None), place)
    branch[name] = {"parameterise": {"prompt": table_GPJ}}
  module: Any = Together(parts)
  if len(parts) == 1:
    ((name, module),) = parts.items()
    branch = branch[name]
  said = {"name": f"task_{number}", "labels": None, "metrics": []}
  if known.members:
    name, labels = known.members[number]
    said |= {"name": name, "labels": None if labels is None else list(labels)}
  card = {**prompt.card, "task": said, "scores": {}}
  for name in ("branches", "shapes"):
    card.pop(name, None)
  return Product(module, {"prompt": branch}, card)


def _row(number: int) -> Context:
  """An example of a task, of which nothing else is read."""
  return Context(
    ids=jnp.ones((1, 1), jnp.int32),
    mask=jnp.ones((1, 1), bool),
    embeddings=jnp.zeros((1, 1, 1)),
    task=jnp.array([number], jnp.int32),
  )


def _table(place: str, record: Any) -> np.ndarray:
  if not isinstance(record, Slots | KeysValues) or record.mask is not None:
    raise ValueError(
      f"This prompt acts at {place!r}, where a task's part is no table of positions."
    )
  vectors = np.asarray(record.vectors[0], np.float32)
  return vectors[None] if isinstance(record, Slots) else vectors

"""Many prompts in one, of which each example gets its own."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from prompt_tuning.core.context import Context, Spec
from prompt_tuning.core.injection import Injection
from prompt_tuning.core.place import Place
from prompt_tuning.core.several import Several


class Gallery(Several):
  """Prompts of one sentence, picked by the number of an example's task.

  Task k has the k-th prompt. All of them are made for every example, so that the rows
  of a batch may be of any tasks; those that read no input cost one table each.

  Attributes:
    by: what picks; "task" is all there is.
  """

  by: str = "task"

  def __post_init__(self) -> None:
    if self.by != "task":
      raise ValueError(
        f"`Gallery.by` is {self.by!r}; prompts are picked by 'task' alone."
      )
    super().__post_init__()
    if self.reads_states:
      raise ValueError(
        "`Gallery.prompts` holds one that reads the states of layers: the backbone "
        "asks it with the same weights for every example, so none can be picked."
      )
    if any(prompt.lengths != self.prompts[0].lengths for prompt in self.prompts):
      found = [prompt.lengths for prompt in self.prompts]
      raise ValueError(
        f"`Gallery.prompts` must be of one sentence, and reserve {found}: positions "
        "are those of every example. Give prompts of one length."
      )

  @property
  def needs(self) -> frozenset[str]:
    """Fields of Context that must be filled in."""
    return super().needs | {self.by}

  @property
  def reads_input(self) -> bool:
    return True

  @property
  def tasks(self) -> int:
    """K, how many prompts there are."""
    return len(self.prompts)

  @property
  def lengths(self) -> dict[str, int]:
    """Virtual positions to reserve, by the side; the same in all prompts."""
    return self.prompts[0].lengths

  def code(self, context: Context, spec: Spec) -> Float[Array, "R C"]:
    """The one vector that an encoded condition makes, where one prompt has such."""
    (prompt,) = (prompt for prompt in self.prompts if prompt.encoded)
    return prompt.code(context, spec)

  def __call__(self, context: Context, spec: Spec, train: bool = False) -> Injection:
    """What the prompt of each example's own task hands back.

    Raises:
      ValueError: if the prompts act at different places or in different ways.
    """
    parts = [prompt(context, spec, train) for prompt in self.prompts]
    if len(set(map(_form, parts))) > 1:
      found = [sorted(part.places) for part in parts]
      raise ValueError(
        f"`Gallery.prompts` must be of one sentence, and act at {found}. Give prompts "
        "that act at the same places in the same way, with tables of the same sizes."
      )
    pick = functools.partial(_picked, context.task)
    return Injection(
      {name: pick([part.held[name] for part in parts]) for name in parts[0].held}
    )


def _form(part: Injection) -> Any:
  """What the records of two prompts have in common if one of them can be picked."""
  leaves, structure = jax.tree.flatten(dict(part.held))
  return structure, tuple((leaf.shape[1:], leaf.dtype) for leaf in leaves)


def _picked(task_R: Int[Array, " R"], records: list[Place]) -> Place:
  """The record of each example's own task; zeros for a number that no task has."""
  R, K = task_R.shape[0], len(records)
  # Not max(): an exported program cannot compare its B with 1.
  static = all(leaf.shape[0] == 1 for leaf in jax.tree.leaves(records))

  def together(*leaves: Array) -> Array:
    if static:
      return jnp.concatenate(leaves)
    whole = [jnp.broadcast_to(leaf, (R, *leaf.shape[1:])) for leaf in leaves]
    return jnp.concatenate(whole)

  known_R = (task_R >= 0) & (task_R < K)
  rows_R = jnp.where(known_R, task_R, 0)
  if not static:
    rows_R = rows_R * R + jnp.arange(R)
  found = jax.tree.map(together, *records).pick(rows_R)

  def kept(leaf: Array) -> Any:
    axes = (1,) * (leaf.ndim - 1)
    return jnp.where(known_R.reshape(R, *axes), leaf, jnp.zeros_like(leaf))

  return jax.tree.map(kept, found)

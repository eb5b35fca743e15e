"""A table for each task, by the code of `conditions.task_id`.

  gather    prompt[G P H] = table[k]                    trains K * G * P * H
  project   prompt[G P H] = shared[G P S] @ left[k] + bias[k]
                                      trains G * (P * S + K * (S * H + H))

with k the row's task of K, and S the width of the shared table. Adding a shared table
is `transforms.add_table` behind `Gather`; standing behind one is `prompt.Together`.
The forms are those of google-research/prompt-tuning's multi-task prompts.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from prompt_tuning.core.context import Code, Spec
from prompt_tuning.core.prompt import AXES, Drawn, Initializer, Shape, weight


class Gather(nn.Module):
  """The row's own table.

  Attributes:
    initializer: draws each task's table [G P H].
    tables_initializer: draws all of them at once [K G P H] in its place, or None.
  """

  reads_code: ClassVar[bool] = True
  initializer: Initializer
  tables_initializer: Initializer | None = None

  @nn.compact
  def __call__(
    self, code: Code, shape: Shape, spec: Spec, train: bool = False
  ) -> Drawn:
    task_RK = by_task(code)
    draw = self.tables_initializer or each(self.initializer)
    whole = task_RK.shape[1], *shape
    table_KGPH = weight(self, "table", draw, whole, spec, (None, *AXES))
    return Drawn(jnp.einsum("RK,KGPH->RGPH", task_RK, table_KGPH))


class Project(nn.Module):
  """A table of all tasks through a linear map of each.

  Attributes:
    width: S, of the shared table.
    initializer: draws the shared table [G P S].
    map_initializer: draws each task's map [G S H] and bias [G H]; None for the same.
  """

  reads_code: ClassVar[bool] = True
  width: int
  initializer: Initializer
  map_initializer: Initializer | None = None

  @nn.compact
  def __call__(
    self, code: Code, shape: Shape, spec: Spec, train: bool = False
  ) -> Drawn:
    G, P, H = shape
    S, task_RK = self.width, by_task(code)
    K = task_RK.shape[1]
    axes = "tables", "prompt", None
    shared_GPS = weight(self, "shared", self.initializer, (G, P, S), spec, axes)
    # None if loaded, where nothing is drawn.
    draw = each(self.map_initializer or self.initializer)
    axes = None, "tables", None, "embed"
    map_KGSH = weight(self, "map", draw, (K, G, S, H), spec, axes)
    bias_KGH = weight(self, "bias", draw, (K, G, H), spec, (None, "tables", "embed"))
    map_RGSH = jnp.einsum("RK,KGSH->RGSH", task_RK, map_KGSH)
    bias_RGH = jnp.einsum("RK,KGH->RGH", task_RK, bias_KGH)
    prompt_RGPH = jnp.einsum("GPS,RGSH->RGPH", shared_GPS, map_RGSH)
    return Drawn(prompt_RGPH + bias_RGH[:, :, None])


def by_task(code: Code) -> Float[Array, "R K"]:
  """The one-hot vector of a task's code.

  Raises:
    ValueError: for a code of several vectors an example.
  """
  if code.values.shape[1] != 1:
    raise ValueError(
      f"A table for each task is chosen by one vector an example, but the condition "
      f"gives {code.values.shape[1]}. Bind `task_id.TaskId`."
    )
  return code.values[:, 0]


def each(initializer: Initializer | None) -> Initializer:
  """Draws arrays [K ...], one a task, by keys of their own."""

  def draw(key: Any, shape: tuple[int, ...], spec: Spec) -> jax.Array:
    keys_K = jax.random.split(key, shape[0])
    return jax.vmap(lambda own: initializer(own, shape[1:], spec))(keys_K)

  return draw

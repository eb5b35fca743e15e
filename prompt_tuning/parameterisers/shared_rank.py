"""One table for all tasks, times a low-rank matrix of each task.

  prompt[G P H] = shared[G P H] * (left[k] @ right[k])
                                      trains G * (P * H + K * r * (P + H))

with k the row's task of K, left [P r] and right [r H]. Of rank 1 in the paper: Wang et
al., 2023, "Multitask Prompt Tuning Enables Parameter-Efficient Transfer Learning"
(arXiv 2303.02861), section 3.2.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from prompt_tuning.core.context import Code, Spec
from prompt_tuning.core.prompt import AXES, Drawn, Initializer, Shape, weight
from prompt_tuning.parameterisers.low_rank import check_rank
from prompt_tuning.parameterisers.task_tables import by_task, each


class SharedRank(nn.Module):
  """A shared table and factors of each task.

  Attributes:
    initializer: draws the shared table [G P H].
    rank: r, from 1 to min(P, H).
    factor_initializer: draws each task's left [G P r] and right [G r H]. None starts
      from products of exactly 1, so that every task's prompt is the shared table: the
      first rank is all one, and of the others the right factor is zero.
  """

  reads_code: ClassVar[bool] = True
  initializer: Initializer
  rank: int = 1
  factor_initializer: Initializer | None = None

  @nn.compact
  def __call__(
    self, code: Code, shape: Shape, spec: Spec, train: bool = False
  ) -> Drawn:
    G, P, H = shape
    check_rank(self.rank, P, H, "SharedRank.rank")
    task_RK = by_task(code)
    K, r = task_RK.shape[1], self.rank
    shared_GPH = weight(self, "shared", self.initializer, shape, spec, AXES)
    left = each(self.factor_initializer or _left)
    right = each(self.factor_initializer or _right)
    axes = None, "tables", "prompt", None
    left_KGPr = weight(self, "left", left, (K, G, P, r), spec, axes)
    axes = None, "tables", None, "embed"
    right_KGrH = weight(self, "right", right, (K, G, r, H), spec, axes)
    scale_KGPH = jnp.einsum("KGPr,KGrH->KGPH", left_KGPr, right_KGrH)
    prompt_KGPH = shared_GPH[None] * scale_KGPH
    return Drawn(jnp.einsum("RK,KGPH->RGPH", task_RK, prompt_KGPH))


def _left(key: Any, shape: tuple[int, ...], spec: Spec) -> jax.Array:
  """Ones in the first rank; in the others draws that break their symmetry."""
  bound = shape[-1] ** -0.5
  drawn = jax.random.uniform(key, shape, minval=-bound, maxval=bound)
  return drawn.at[..., 0].set(1.0)


def _right(key: Any, shape: tuple[int, ...], spec: Spec) -> jax.Array:
  return jnp.zeros(shape).at[..., 0, :].set(1.0)

"""A table inside of a fixed subspace: few coordinates, a basis that does not train.

  prompt[G P H] = mean[G H] + (coordinates[G P r] * scale[G r]) @ basis[G r H]

Trains G * P * r where TRAINABLE names the coordinates alone, such as
("prompt/parameterise/coordinates",). Basis, mean and scale are leaves that a procedure
gives (`procedures.subspaces`); until then a random orthonormal basis, 0 and 1. After
"SPARC" (arXiv 2502.02909), where the basis is that of a task's token embeddings.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from prompt_tuning.core.context import Spec
from prompt_tuning.core.prompt import AXES, Drawn, Initializer, Shape, weight
from prompt_tuning.inits import uniform


class Subspace(nn.Module):
  """Coordinates in a subspace.

  Attributes:
    rank: r, from 1 to the width.
    initializer: draws the coordinates [G P r].
  """

  reads_code: ClassVar[bool] = False
  rank: int
  initializer: Initializer

  @nn.compact
  def __call__(
    self, code: None, shape: Shape, spec: Spec, train: bool = False
  ) -> Drawn:
    G, P, H = shape
    r = self.rank
    if not 1 <= r <= H:
      raise ValueError(f"`Subspace.rank` (RANK) is {r}; it must be from 1 to {H}.")
    axes = "tables", "prompt", None
    own_GPr = weight(self, "coordinates", self.initializer, (G, P, r), spec, axes)
    basis_GrH = weight(
      self, "basis", orthonormal, (G, r, H), spec, (AXES[0], None, AXES[2])
    )
    mean_GH = weight(self, "mean", uniform.zeros(), (G, H), spec, (AXES[0], AXES[2]))
    scale_Gr = weight(self, "scale", uniform.ones(), (G, r), spec, (AXES[0], None))
    inside_GPH = jnp.einsum("GPr,Gr,GrH->GPH", own_GPr, scale_Gr, basis_GrH)
    return Drawn((mean_GH[:, None] + inside_GPH)[None])


def orthonormal(key: Any, shape: tuple[int, ...], spec: Spec) -> jax.Array:
  """Rows [... r H] of random directions at right angles."""
  drawn = jax.random.normal(key, (*shape[:-2], shape[-1], shape[-2]))
  return jnp.swapaxes(jnp.linalg.qr(drawn)[0], -1, -2)

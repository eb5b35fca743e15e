"""A vector that the data pipeline supplies: GloVe means, another encoder's output.

IDPG's GloVe variant (Wu et al., 2022); the task's feature `external` holds it.
"""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from prompt_tuning.core.context import Code, Context, Spec, pooled


class External(nn.Module):
  """The given vector [R C].

  Attributes:
    width: C, checked against the data.
  """

  needs: ClassVar[frozenset[str]] = frozenset({"external"})
  width: int

  def __call__(self, context: Context, spec: Spec, train: bool = False) -> Code:
    if context.external.shape[-1] != self.width:
      raise ValueError(
        f"`External.width` is {self.width}, but the task supplies vectors of width "
        f"{context.external.shape[-1]}."
      )
    return pooled(jnp.asarray(context.external, jnp.float32))

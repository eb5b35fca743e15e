"""Every token of the text: Q = T vectors, none for what reads one vector alone.

Each frozen embedding is divided by its root mean square, as T5's rows have no fixed
scale; `normalize` off leaves them as they are.
"""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from prompt_tuning.blocks.norms import unit_rms
from prompt_tuning.core.context import Code, Context, Spec


class Tokens(nn.Module):
  """The frozen token embeddings.

  Attributes:
    normalize: divide each by its root mean square.
  """

  needs: ClassVar[frozenset[str]] = frozenset()
  normalize: bool = True

  def __call__(self, context: Context, spec: Spec, train: bool = False) -> Code:
    values_RTC = jnp.asarray(context.embeddings, jnp.float32)
    if self.normalize:
      values_RTC = unit_rms(values_RTC)
    return Code(jnp.where(context.mask[..., None], values_RTC, 0), context.mask)

"""Private vectors of an example's first P tokens.

  A[r p] = W[ids[r p]], p < P                        trains V * C

IPT (arXiv 2206.01958): token types, so equal words give equal vectors. `ids` hold no
reserved position, and a slot without a token is masked, not filled with a pad's row.
"""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from prompt_tuning.core.context import Code, Context, Spec
from prompt_tuning.core.prompt import Initializer, weight


class TokenLookup(nn.Module):
  """A trainable table beside the frozen one.

  Attributes:
    length: P, tokens that are read.
    initializer: draws the table [V C]; `inits.saved.rows` makes it IPT's Pretrained.
    width: C; 0 for the backbone's own width.
    tables: where above 0, C is so many times the width of the place where the prompt
      acts: 2 for a key and a value.
  """

  needs: ClassVar[frozenset[str]] = frozenset()
  length: int
  initializer: Initializer
  width: int = 0
  tables: int = 0

  @nn.compact
  def __call__(self, context: Context, spec: Spec, train: bool = False) -> Code:
    H = context.embeddings.shape[-1]
    if self.tables:
      H = self.tables * spec.asked.width
    # Padded whether it is short or not: an exported program does not know its T.
    room = (0, 0), (0, self.length)
    ids_RP = jnp.pad(context.ids, room)[:, : self.length]
    mask_RP = jnp.pad(context.mask, room)[:, : self.length]
    shape = (spec.vocabulary, self.width or H)
    axes = "vocab", "embed"
    table_VC = weight(self, "table", self.initializer, shape, spec, axes)
    return Code(jnp.take(table_VC, ids_RP, axis=0), mask_RP)

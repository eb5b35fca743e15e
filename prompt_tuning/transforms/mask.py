"""A frozen mask over pieces of a prompt: what is pruned, and what that means.

  Z[P K h] = mask[P K] * prompt[P K h],  h = H / K

The mask is a leaf [P K] of ones that a run leaves as it is: name the branch of the
table alone in TRAINABLE, such as ("prompt/parameterise",). What is masked is exactly 0
whatever the optimiser does to the table. XPrompt (Ma et al., 2022) masks whole
positions, then pieces of them.
"""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from prompt_tuning.core.context import Code, Spec
from prompt_tuning.core.prompt import Drawn, weight
from prompt_tuning.inits import uniform


class Mask(nn.Module):
  """Multiplies pieces of every position by zeros and ones.

  Attributes:
    pieces: K, parts of a position, which must divide the width.
    pruned: what a position without a piece is. "zero": a vector of zeros, which takes
      its share of attention; "hidden": nobody attends to it, while distances stay.
      (Dropped, it would move the text nearer: that is a shorter prompt, and in T5 gives
      other logits than both.)
  """

  pieces: int = 1
  pruned: Literal["zero", "hidden"] = "zero"

  @nn.compact
  def __call__(
    self, drawn: Drawn, code: Code | None, spec: Spec, train: bool = False
  ) -> Drawn:
    R, G, P, H = drawn.prompt.shape
    if self.pieces < 1 or H % self.pieces:
      raise ValueError(
        f"`Mask.pieces` is {self.pieces}; it must be a whole number that divides the "
        f"prompt's width, {H}."
      )
    if self.pruned not in ("zero", "hidden"):
      raise ValueError(
        f"`Mask.pruned` is {self.pruned!r}; it must be 'zero' or 'hidden'."
      )
    K = self.pieces
    mask_PK = weight(self, "mask", uniform.ones(), (P, K), spec, ("prompt", None))
    pieces = drawn.prompt.reshape(R, G, P, K, H // K)
    kept = pieces * mask_PK[None, None, :, :, None]
    seen_RP = drawn.mask
    if self.pruned == "hidden":
      left_1P = (mask_PK != 0).any(-1)[None]
      seen_RP = left_1P if seen_RP is None else jnp.logical_and(seen_RP, left_1P)
    return Drawn(kept.reshape(R, G, P, H), seen_RP)

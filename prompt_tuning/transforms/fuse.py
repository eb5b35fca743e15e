"""A prompt that reads the low-rank factors of another table by attention.

  F = softmax((prompt Wq) (B Wk)^T / sqrt(d)) (B Wv) Wo,   Z = prompt + F

with B[R H] the right factor of a `parameterisers.low_rank.LowRank` that stands in the
same sentence. Trains 4 H d. Lan et al., 2025, "Efficient Prompt Tuning by Multi-Space
Projection and Prompt Fusion" (EPT, arXiv 2405.11464), of which no code is public: the
layer's form is our reading. Wo starts at zero, where Z is the prompt.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from prompt_tuning.core.context import Code, Spec
from prompt_tuning.core.prompt import Drawn, Initializer, weight
from prompt_tuning.inits import uniform


class Fuse(nn.Module):
  """One head of attention over R rows.

  Attributes:
    memory: the word whose leaf `right` [1 R H] is read; it must stand before, in
      another prompt of the same `Together`.
    width: d. initializer: draws Wq, Wk and Wv; None for U(+-1 / sqrt(H)).
  """

  memory: nn.Module
  width: int = 16
  initializer: Initializer | None = None

  @nn.compact
  def __call__(
    self, drawn: Drawn, code: Code | None, spec: Spec, train: bool = False
  ) -> Drawn:
    if self.width < 1:
      raise ValueError(f"`Fuse.width` must be at least 1, got {self.width}.")
    right = self.memory.get_variable("params", "right")
    H = drawn.prompt.shape[-1]
    if right is None or right.shape[0] != 1 or right.shape[-1] != H:
      raise ValueError(
        f"`Fuse.memory` is a {type(self.memory).__name__} without a factor `right` "
        f"[1 R {H}] that was drawn before. Bind the very word (gin.singleton) of a "
        "prompt that stands before this one."
      )
    initializer = self.initializer or uniform.symmetric(H**-0.5)
    down = (H, self.width)

    def kernel(name: str, draw: Initializer, shape: tuple[int, int]) -> jax.Array:
      return weight(self, name, draw, shape, spec)

    query, key, value = (
      kernel(n, initializer, down) for n in ("query", "key", "value")
    )
    out = kernel("out", uniform.zeros(), down[::-1])
    memory_RH = right[0]
    scores = drawn.prompt @ query @ (memory_RH @ key).T * self.width**-0.5
    fused = jax.nn.softmax(scores) @ (memory_RH @ value) @ out
    return Drawn(drawn.prompt + jnp.asarray(fused), drawn.mask)

"""A prompt times learned factors: Z = prompt * s.

  width    s[G H], one factor a channel            trains G H
  row      s[G P], one a position                  trains G P
  scalar   s[G]                                    trains G
  outer    s[G P] times s[G H]                     trains G (P + H)

Hu et al., 2023, "Scaled Prompt-Tuning for Few-Shot Natural Language Generation"; the
paper's axis could not be read, so all are here and `width` is our choice. Factors start
at 1, where Z is the prompt.
"""

import flax.linen as nn

from prompt_tuning.core.context import Code, Spec
from prompt_tuning.core.prompt import Drawn, weight
from prompt_tuning.inits import uniform

AXES = ("width", "row", "scalar", "outer")


class Scale(nn.Module):
  """Multiplies the prompt.

  Attributes:
    axis: one of `AXES`.
  """

  axis: str = "width"

  def __post_init__(self) -> None:
    if self.axis not in AXES:
      raise ValueError(f"`Scale.axis` must be one of {AXES}, got {self.axis!r}.")
    super().__post_init__()

  @nn.compact
  def __call__(
    self, drawn: Drawn, code: Code | None, spec: Spec, train: bool = False
  ) -> Drawn:
    found = drawn.prompt
    G, P, H = found.shape[1:]

    def factors(name: str, shape: tuple[int, ...], axes: tuple[str, ...]):
      return weight(self, name, uniform.ones(), shape, spec, axes)

    if self.axis in ("row", "outer"):
      found = found * factors("row", (G, P), ("tables", "prompt"))[None, :, :, None]
    if self.axis in ("width", "outer"):
      found = found * factors("width", (G, H), ("tables", "embed"))[None, :, None]
    if self.axis == "scalar":
      found = found * factors("scalar", (G,), ("tables",))[None, :, None, None]
    return Drawn(found, drawn.mask)

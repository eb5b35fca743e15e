"""Prompts that stand among the embeddings: one table, width of the backbone."""

import dataclasses
from typing import ClassVar

from prompt_tuning.core.context import Spec
from prompt_tuning.core.injection import Injection
from prompt_tuning.core.prompt import Drawn


@dataclasses.dataclass(frozen=True)
class EncoderInput:
  """Virtual positions of the encoder's input (Lester et al., 2021)."""

  side: ClassVar[str] = "encoder"

  def tables(self, spec: Spec) -> tuple[int, int]:
    """(G, H) that this site asks for."""
    return 1, spec.width

  def __call__(self, drawn: Drawn) -> Injection:
    return Injection(encoder_input=drawn.prompt[:, 0], encoder_mask=drawn.mask)


@dataclasses.dataclass(frozen=True)
class DecoderInput:
  """Virtual positions in front of the decoder's start token."""

  side: ClassVar[str] = "decoder"

  def tables(self, spec: Spec) -> tuple[int, int]:
    """(G, H) that this site asks for."""
    return 1, spec.width

  def __call__(self, drawn: Drawn) -> Injection:
    prompt_RPH = drawn.prompt[:, 0]
    if drawn.mask is not None:
      # The decoder's causal mask has no gaps: an unused slot stays as a zero vector.
      prompt_RPH = prompt_RPH * drawn.mask[..., None]
    return Injection(decoder_input=prompt_RPH)

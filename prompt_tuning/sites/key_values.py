"""Prompts that are keys and values of self-attention, in every layer of a stack.

Li and Liang, 2021, "Prefix-Tuning: Optimizing Continuous Prompts for Generation"; Liu
et al., 2022, "P-Tuning v2". Relative positions go on to the left of the text: slot p
stands at p - P, as in T-Few (Liu et al., 2022) and in PEFT. They use no virtual
positions.
"""

import dataclasses
from typing import ClassVar

from prompt_tuning.core.context import Spec
from prompt_tuning.core.injection import Injection
from prompt_tuning.core.prompt import Drawn


@dataclasses.dataclass(frozen=True)
class EncoderKeyValues:
  """Keys and values [R G P J] of the encoder's layers."""

  side: ClassVar[None] = None

  def tables(self, spec: Spec) -> tuple[int, int]:
    """(G, J): a key and a value for each layer, of the width of all heads."""
    return 2 * spec.encoder_layers, spec.heads * spec.head_width

  def __call__(self, drawn: Drawn) -> Injection:
    return Injection(encoder_kv=drawn.prompt, encoder_kv_mask=drawn.mask)


@dataclasses.dataclass(frozen=True)
class DecoderKeyValues:
  """Keys and values [R G P J] of the decoder's self-attention."""

  side: ClassVar[None] = None

  def tables(self, spec: Spec) -> tuple[int, int]:
    """(G, J): a key and a value for each layer, of the width of all heads."""
    return 2 * spec.decoder_layers, spec.heads * spec.head_width

  def __call__(self, drawn: Drawn) -> Injection:
    values_RGPJ = drawn.prompt
    if drawn.mask is not None:
      # As in front of the start token: an unused slot stays as zeros.
      values_RGPJ = values_RGPJ * drawn.mask[:, None, :, None]
    return Injection(decoder_kv=values_RGPJ)

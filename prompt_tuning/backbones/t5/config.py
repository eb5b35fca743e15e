"""The architecture of one T5."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from prompt_tuning.backbones.common import switches
from prompt_tuning.backbones.common.switches import SWITCHES
from prompt_tuning.core.ids import Ids

# Those of every T5; its decoder starts from the id that pads.
IDS = Ids(pad=0, start=0, end=1, reserved=2)
ATTENTION = ("xla", "cudnn", "pallas")


@dataclasses.dataclass(frozen=True)
class T5Config:
  """Sizes and switches; the fields keep T5X's names.

  Attributes:
    vocab_size: V, rows of the token table.
    emb_dim: H. num_heads: N. head_dim: D. mlp_dim: F.
    num_encoder_layers, num_decoder_layers: blocks of each stack.
    mlp_activations: ("relu",) for T5 1.0, ("gelu", "linear") for 1.1 and later.
    logits_via_embedding: whether the token table also makes the logits (T5 1.0), which
      are then scaled by H^-0.5.
    dropout_rate: used in training only.
    dtype: of activations; weights keep their own.
    weights_dtype: to cast weights to when they are read, such as "bfloat16", or "int8"
      for matrices that are frozen (see `int8.py`); None keeps the stored ones.
    scan_layers: one stacked `layers` branch instead of `layers_0`, `layers_1` ...
    remat_policy: "none", "full" (keep block inputs only) or "dots" (keep products).
    attention: "xla", or a kernel that never holds attention's weights: "cudnn" (GPU,
      bfloat16) or "pallas" (TPU), see `fused.py`.
    relative_buckets, relative_max_distance: of the position bias.
  """

  vocab_size: int
  emb_dim: int
  num_heads: int
  head_dim: int
  mlp_dim: int
  num_encoder_layers: int
  num_decoder_layers: int
  mlp_activations: Sequence[str] = ("gelu", "linear")
  logits_via_embedding: bool = False
  dropout_rate: float = 0.0
  dtype: Any = "float32"
  scan_layers: bool = False
  remat_policy: str = "none"
  relative_buckets: int = 32
  relative_max_distance: int = 128
  weights_dtype: Any = None
  attention: str = "xla"

  def __post_init__(self) -> None:
    object.__setattr__(self, "mlp_activations", tuple(self.mlp_activations))
    switches.check(self)
    for name in (
      "vocab_size",
      "emb_dim",
      "num_heads",
      "head_dim",
      "mlp_dim",
      "num_encoder_layers",
      "num_decoder_layers",
    ):
      if getattr(self, name) < 1:
        raise ValueError(
          f"`T5Config.{name}` must be at least 1, got {getattr(self, name)}."
        )
    if self.relative_buckets < 4:
      raise ValueError(
        f"`T5Config.relative_buckets` must be at least 4, got {self.relative_buckets}."
      )
    if self.relative_max_distance <= self.relative_buckets // 2:
      raise ValueError(
        "`T5Config.relative_max_distance` must be more than half of the "
        f"{self.relative_buckets} buckets, got {self.relative_max_distance}."
      )
    self._check_attention()
    unknown = set(self.mlp_activations) - {"relu", "gelu", "linear"}
    if unknown or not self.mlp_activations:
      raise ValueError(
        "`T5Config.mlp_activations` takes 'relu', 'gelu' and 'linear', got "
        f"{self.mlp_activations}."
      )

  def _check_attention(self) -> None:
    what = f"`T5Config.attention` (ATTENTION) is {self.attention!r}"
    fix = "or take 'xla'."
    if self.attention not in ATTENTION:
      raise ValueError(f"{what}; it must be one of {ATTENTION}.")
    if self.attention != "xla" and self.dropout_rate:
      raise ValueError(
        f"{what}, whose kernel drops no weights of attention, but DROPOUT_RATE is "
        f"{self.dropout_rate}. Set DROPOUT_RATE = 0.0, {fix}"
      )
    if self.attention == "cudnn" and self.dtype != "bfloat16":
      raise ValueError(
        f"{what}, which takes activations in bfloat16, but ACTIVATION_DTYPE is "
        f"{self.dtype!r}. Set ACTIVATION_DTYPE = 'bfloat16', {fix}"
      )
    if self.attention == "cudnn" and (self.head_dim % 8 or self.head_dim > 128):
      raise ValueError(
        f"{what}, which takes heads whose width is a multiple of 8 up to 128, but "
        f"`T5Config.head_dim` is {self.head_dim}. Take 'xla'."
      )

  def to_json(self) -> dict[str, Any]:
    """The architecture alone: what must match for weights to fit."""
    fields = dataclasses.asdict(self)
    for switch in SWITCHES:
      del fields[switch]
    return {**fields, "mlp_activations": list(self.mlp_activations)}

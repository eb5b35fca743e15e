"""The architecture of one decoder-only language model."""

import dataclasses
from typing import Any

from prompt_tuning.backbones.common import switches
from prompt_tuning.backbones.common.switches import SWITCHES
from prompt_tuning.core.ids import Ids

NORMS = ("rms", "layer")
POSITIONS = ("rope", "learned")
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")
_SIZES = "vocab_size emb_dim num_heads num_kv_heads head_dim mlp_dim num_decoder_layers"


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Sizes, kinds of parts, and switches.

  Attributes:
    vocab_size: V, rows of the token table.
    emb_dim: H. num_heads: N. num_kv_heads: of keys and values, a divisor of N.
    head_dim: D. mlp_dim: F. num_decoder_layers: L.
    norm: "rms" (no mean, no bias) or "layer". norm_epsilon: added to its variance.
    positions: "rope", by turning queries and keys, or "learned", a table that is added
      to the embeddings.
    rope_base: of the wave lengths. rope_share: of D that is turned, its front.
    num_positions: rows of the learned table; of "rope", how far texts went in training,
      which limits nothing. position_offset: row of place 0 in the table.
    parallel_residual: whether attention and feed-forward read the same states.
    mlp_activation: one of `ACTIVATIONS`; "gelu" is the exact one.
    mlp_gated: whether a second matrix stands beside the activation, as a factor.
    attention_bias, mlp_bias: whether their kernels have biases.
    logits_via_embedding: whether the token table also makes the logits.
    start_id, end_id: what the first target follows where nothing was read; what ends.
    dropout_rate, dtype, weights_dtype, scan_layers, remat_policy: as of a T5.
    attention: "xla", so far.
  """

  vocab_size: int
  emb_dim: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_dim: int
  num_decoder_layers: int
  norm: str = "rms"
  norm_epsilon: float = 1e-5
  positions: str = "rope"
  rope_base: float = 10000.0
  rope_share: float = 1.0
  num_positions: int = 2048
  position_offset: int = 0
  parallel_residual: bool = False
  mlp_activation: str = "silu"
  mlp_gated: bool = True
  attention_bias: bool = False
  mlp_bias: bool = False
  logits_via_embedding: bool = False
  start_id: int = 1
  end_id: int = 2
  dropout_rate: float = 0.0
  dtype: Any = "float32"
  scan_layers: bool = False
  remat_policy: str = "none"
  weights_dtype: Any = None
  attention: str = "xla"

  def __post_init__(self) -> None:
    switches.check(self)
    for name in [*_SIZES.split(), "num_positions"]:
      if getattr(self, name) < 1:
        self._refuse(name, "at least 1")
    for name, known in (
      ("norm", NORMS),
      ("positions", POSITIONS),
      ("mlp_activation", ACTIVATIONS),
      ("attention", ("xla",)),
    ):
      if getattr(self, name) not in known:
        self._refuse(name, f"one of {known}")
    if self.num_heads % self.num_kv_heads:
      self._refuse("num_kv_heads", f"a divisor of num_heads = {self.num_heads}")
    if self.positions == "rope" and (self.turned < 2 or self.turned % 2):
      self._refuse("rope_share", f"such that an even part of {self.head_dim} is turned")
    if self.norm_epsilon <= 0 or self.rope_base <= 0:
      name = "norm_epsilon" if self.norm_epsilon <= 0 else "rope_base"
      self._refuse(name, "more than 0")
    if self.position_offset < 0:
      self._refuse("position_offset", "at least 0")
    for name in ("start_id", "end_id"):
      if not 0 <= getattr(self, name) < self.vocab_size:
        self._refuse(name, f"an id below vocab_size = {self.vocab_size}")

  def _refuse(self, name: str, fits: str) -> None:
    raise ValueError(
      f"`DecoderConfig.{name}` must be {fits}, got {getattr(self, name)!r}."
    )

  @property
  def turned(self) -> int:
    """How many entries of a head are turned."""
    return int(self.head_dim * self.rope_share)

  @property
  def joined(self) -> int:
    """J, the width of one key or value."""
    return self.num_kv_heads * self.head_dim

  @property
  def ids(self) -> Ids:
    """No id pads: a tokenizer of this family pads with a word, or not at all."""
    return Ids(pad=-1, start=self.start_id, end=self.end_id, reserved=0)

  def to_json(self) -> dict[str, Any]:
    """The architecture alone: what must match for weights to fit."""
    fields = dataclasses.asdict(self)
    return {name: x for name, x in fields.items() if name not in SWITCHES}

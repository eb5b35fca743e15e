"""The architecture of one BERT-like encoder: BERT, RoBERTa, XLM-R, MiniLM."""

import dataclasses
from typing import Any

from prompt_tuning.backbones.common import switches
from prompt_tuning.backbones.common.switches import SWITCHES
from prompt_tuning.core.ids import Ids

ACTIVATIONS = ("gelu", "gelu_tanh", "relu")
KINDS = ("bert", "roberta", "xlm-roberta")
_SIZES = ("vocab_size", "emb_dim", "num_heads", "mlp_dim", "num_layers", "positions")


@dataclasses.dataclass(frozen=True)
class BertConfig:
  """Sizes and switches.

  Attributes:
    vocab_size: V, rows of the token table.
    emb_dim: H. num_heads: N, which divides H. mlp_dim: F. num_layers: L.
    positions: rows of the position table, those before the first one included.
    first_position: the row of a text's first token; RoBERTa's is 2.
    types: rows of the table of token types.
    activation: "gelu" (exact), "gelu_tanh" or "relu".
    norm_epsilon: added to a variance.
    pooler: whether there is one. mlm_head: whether there is a head of masked words.
    kind: "bert", "roberta" or "xlm-roberta": how files name the weights; and the head
      of the last two takes the exact "gelu" whatever the layers do.
    pad_id, first_id, last_id, mask_id: what pads, opens and closes a text, and stands
      for a word that is left out.
    dropout_rate: used in training only.
    dtype: of activations; weights keep their own.
    weights_dtype: to cast weights to when they are read, such as "bfloat16", or "int8"
      for matrices that are frozen; None keeps the stored ones.
    scan_layers: one stacked `layers` branch instead of `layers_0`, `layers_1` ...
    remat_policy: "none", "full" (keep block inputs only) or "dots" (keep products).
    attention: "xla".
  """

  vocab_size: int
  emb_dim: int
  num_heads: int
  mlp_dim: int
  num_layers: int
  positions: int = 512
  first_position: int = 0
  types: int = 2
  activation: str = "gelu"
  norm_epsilon: float = 1e-12
  pooler: bool = True
  mlm_head: bool = False
  kind: str = "bert"
  pad_id: int = 0
  first_id: int = 101
  last_id: int = 102
  mask_id: int = 103
  dropout_rate: float = 0.0
  dtype: Any = "float32"
  weights_dtype: Any = None
  scan_layers: bool = False
  remat_policy: str = "none"
  attention: str = "xla"

  def __post_init__(self) -> None:
    switches.check(self)
    for name in _SIZES:
      self._need(name, getattr(self, name) >= 1, "at least 1")
    fits = self.emb_dim % self.num_heads == 0
    self._need("num_heads", fits, f"a divisor of `emb_dim`, {self.emb_dim}")
    self._need("types", self.types >= 1, "at least 1")
    fits = 0 <= self.first_position < self.positions
    self._need("first_position", fits, f"from 0 and below {self.positions}")
    self._need("norm_epsilon", self.norm_epsilon > 0, "above 0")
    self._choose("activation", ACTIVATIONS)
    self._choose("kind", KINDS)
    self._choose("attention", ("xla",))
    for name in ("pad_id", "first_id", "last_id", "mask_id"):
      fits = 0 <= getattr(self, name) < self.vocab_size
      self._need(name, fits, f"an id below {self.vocab_size}")
    fits = len({self.pad_id, self.first_id, self.last_id}) == 3
    self._need("pad_id", fits, "another id than `first_id` and `last_id`")

  def _need(self, name: str, fits: bool, words: str) -> None:
    if not fits:
      raise ValueError(
        f"`BertConfig.{name}` must be {words}, got {getattr(self, name)!r}."
      )

  def _choose(self, name: str, known: tuple[str, ...]) -> None:
    self._need(name, getattr(self, name) in known, f"one of {known}")

  @property
  def head_dim(self) -> int:
    """D."""
    return self.emb_dim // self.num_heads

  @property
  def room(self) -> int:
    """Tokens of a row, those of a prompt included."""
    return self.positions - self.first_position

  @property
  def ids(self) -> Ids:
    """What pads, opens and closes a text; a row of no other use is reserved."""
    used = {self.pad_id, self.first_id, self.last_id, self.mask_id}
    free = next((i for i in range(self.vocab_size) if i not in used), self.mask_id)
    return Ids(self.pad_id, self.first_id, self.last_id, free)

  def to_json(self) -> dict[str, Any]:
    """The architecture alone: what must match for weights to fit."""
    fields = dataclasses.asdict(self)
    for switch in SWITCHES:
      del fields[switch]
    return fields

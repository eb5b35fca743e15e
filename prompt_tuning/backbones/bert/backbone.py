"""A BERT as the rest of the library sees it: pure functions of a parameter tree.

The only reader of `Injection` for this family. It writes nothing: heads
answer.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from prompt_tuning.backbones.bert import views
from prompt_tuning.backbones.bert.config import BertConfig
from prompt_tuning.backbones.bert.network import Bert as Network
from prompt_tuning.backbones.bert.places import places
from prompt_tuning.backbones.common import changes, layered, texts
from prompt_tuning.backbones.common import prefix as prefixes
from prompt_tuning.backbones.common.pure import Pure
from prompt_tuning.core import injection as inject
from prompt_tuning.core.context import Spec
from prompt_tuning.core.format import Encoder
from prompt_tuning.core.injection import Injection

Params = Any


class Reading(NamedTuple):
  """What heads read.

  Attributes:
    states: of the last layer [B T H]. mask: true where they may be attended to [B T].
  """

  states: Float[Array, "B T H"]
  mask: Bool[Array, "B T"]


@dataclasses.dataclass(frozen=True)
class Bert(Pure):
  """A backbone of one architecture; weights travel beside it.

  Attributes:
    config: the architecture. found: see `Pure`; nothing is traced yet.
  """

  config: BertConfig
  found: dict[str, Array] | None = dataclasses.field(default=None, compare=False)

  family = "bert"
  network = Network

  @property
  def views(self) -> tuple[str, ...]:
    """What heads may read."""
    return (*views.VIEWS, *([views.POOLER] if self.config.pooler else []))

  @property
  def spec(self) -> Spec:
    config = self.config
    return Spec(config.emb_dim, config.vocab_size, places(config), ids=config.ids)

  @property
  def format(self) -> Encoder:
    return Encoder(self.config.ids, self.config.room)

  def check_device(self) -> None:
    """It runs anywhere."""

  def _first_inputs(self) -> tuple[Array]:
    return (jnp.ones((1, 2), jnp.int32),)

  def encode_rows(
    self,
    params: Params,
    embeddings_BTH: Float[Array, "B T H"],
    mask_BT: Bool[Array, "B T"],
    segments_BT: Int[Array, "B T"] | None = None,
  ) -> Float[Array, "B T H"]:
    """States of rows without a prompt, packed or not, dropout off."""
    positions_BT = self._positions(mask_BT, segments_BT)
    given = embeddings_BTH, positions_BT, None, mask_BT, segments_BT
    return self.apply(params, "encode", *given)

  def read(
    self,
    params: Params,
    batch: dict[str, Array],
    injection: Injection | None = None,
    key: Any = None,
  ) -> Reading:
    """The last states of a batch.

    Args:
      params: the weights.
      batch: `inputs`; `prompt_index` where positions are reserved; `segment_ids` where
        rows are packed.
      injection: what the prompt asks for, or None.
      key: dropout key; None switches dropout off.
    """
    inputs_BT, ids = batch["inputs"], self.config.ids
    real_BT = mask_BT = ids.is_real(inputs_BT)
    x_BTH = self.embed(params, inputs_BT)
    segments_BT, index_BT = batch.get("segment_ids"), batch.get("prompt_index")
    injection = injection or Injection()
    offset, slots = injection.get("encoder.offset"), injection.get("encoder.input")
    if offset is not None:
      places_BT = texts.places(batch, ids)
      x_BTH = inject.add(x_BTH, offset.vectors, places_BT, segments_BT)
    held = injection.get("encoder.layers")
    if held is not None:
      mask_BT &= layered.visible(held, index_BT, segments_BT)
    if slots is not None:
      own_BT = layered.of_input(index_BT, held)
      x_BTH = inject.fill(x_BTH, slots.vectors, own_BT, segments_BT)
      if slots.mask is not None:
        mask_BT &= inject.visible(slots.mask, own_BT, segments_BT)
    B, scanned = x_BTH.shape[0], self.config.scan_layers
    keys_values, prefix, placed = injection.get("encoder.kv"), None, None
    if keys_values is not None:
      heads = self.config.num_heads, self.config.head_dim
      vectors = keys_values.vectors, keys_values.mask
      prefix = prefixes.prefix(*vectors, B, segments_BT, heads, scanned)
    if held is not None:
      front = 0 if prefix is None else prefix.allowed.shape[-1]
      rows = index_BT, front, 0, segments_BT, real_BT
      placed = layered.layered(held, self.config.num_layers, scanned, *rows)
    inputs = {name: tables.inputs for name, tables in self.spec.places.items()}
    changed = changes.of(injection, "encoder", inputs, B, segments_BT)
    positions_BT = self._positions(real_BT, segments_BT, keys_values)
    places_types = positions_BT, self._types(inputs_BT, segments_BT)
    given = *places_types, mask_BT, segments_BT, prefix, changed, placed
    return Reading(self.apply(params, "encode", x_BTH, *given, key=key), mask_BT)

  def _positions(
    self, real_BT: Array, segments_BT: Array | None, keys_values: Any = None
  ) -> Int[Array, "B T"]:
    """The row of the position table of each token, prompt positions counted.

    Files count from the mask, so that pads stand nowhere; where keys and values take
    places (`KeysValues.shift`), the text begins behind them.
    """
    places_BT = prefixes.places(real_BT.shape[1], segments_BT)
    shift = 0 if keys_values is None else keys_values.shift
    T, first = real_BT.shape[1], self.config.first_position + shift
    if (
      shift
      and segments_BT is None
      and isinstance(T, int)
      and T > self.config.room - shift
    ):
      raise ValueError(
        f"Rows of {T} tokens behind {shift} keys that take positions do not fit the "
        f"{self.config.room} positions of this backbone. Shorten TASK_FEATURE_LENGTHS "
        "or PROMPT_LENGTH."
      )
    return jnp.broadcast_to(places_BT + first, real_BT.shape)

  def _types(
    self, inputs_BT: Array, segments_BT: Array | None
  ) -> Int[Array, "B T"] | None:
    """0 up to the first closing mark of an example, 1 behind it; None where all are 0.

    A pair of texts is one input with that mark between them ("{a} [SEP] {b}").
    """
    if self.config.types == 1:
      return None
    mark_BT = (inputs_BT == self.config.last_id).astype(jnp.int32)
    before_BT = jnp.cumsum(mark_BT, axis=1) - mark_BT
    if segments_BT is not None:
      earlier_BT = jnp.pad(segments_BT, ((0, 0), (1, 0)))[:, :-1]
      first_BT = jnp.where(segments_BT != earlier_BT, before_BT, 0)
      before_BT = before_BT - jax.lax.cummax(first_BT, axis=1)
    return jnp.minimum(before_BT, 1)

  def view(
    self,
    params: Params,
    name: str,
    batch: dict[str, Array],
    reading: Reading,
    injection: Injection | None = None,
    key: Any = None,
    front: int = 0,
    segments: int = 1,
  ) -> Float[Array, "R H"]:
    """One vector an example, for heads; see `backbones.bert.views`.

    Args:
      params: the weights. name: one of `views`. batch, reading: as of `read`.
      injection, key, front: of families whose decoder is asked. segments: S.
    """
    del injection, key, front
    if name == "mean":
      return texts.mean(reading.states, batch, segments, self.config.ids)
    found_RH = views.first(reading.states, batch, segments, self.config.ids)
    return found_RH if name == "first" else self.apply(params, "pooled", found_RH)

  def logits(
    self, params: Params, states: Float[Array, "*X H"]
  ) -> Float[Array, "*X V"]:
    """float32 logits of masked words.

    Raises:
      ValueError: where the files hold no head of masked words.
    """
    if not self.config.mlm_head:
      raise ValueError(
        "This encoder's files hold no head of masked words (cls.predictions or "
        "lm_head), so that it says nothing of words. Load one that has it, such as the "
        "pre-trained bert-base-uncased."
      )
    return super().logits(params, states)

  def apply(self, params: Params, method: str, *args: Any, key: Any = None) -> Any:
    own = None if key is None else jax.random.split(key)[1]
    return super().apply(params, method, *args, key=own)

"""A decoder-only language model as the rest of the library sees it.

The only reader of `Injection` for this family. Pure functions of the tree that
`network.Transformer` makes.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from prompt_tuning.backbones.common import changes, layered, texts, traces
from prompt_tuning.backbones.common import prefix as prefixes
from prompt_tuning.backbones.common.pure import Pure
from prompt_tuning.backbones.decoder import cached, rows, views
from prompt_tuning.backbones.decoder.config import DecoderConfig
from prompt_tuning.backbones.decoder.network import PerLayer, Transformer
from prompt_tuning.backbones.decoder.places import places
from prompt_tuning.backbones.decoder.rows import Rows
from prompt_tuning.core import injection as inject
from prompt_tuning.core.context import Spec
from prompt_tuning.core.format import Causal
from prompt_tuning.core.injection import Injection

Params = Any


class Reading(NamedTuple):
  """What was made of the inputs, and what targets behind them need.

  Attributes:
    states: the last ones of the inputs [B T H]. mask: true where one may be read [B T].
    past: keys and values of each layer [B K G D], a prefix's in front.
    allowed: which of them are seen [B K]. count: places before the first target [B 1].
    opening: embedding of what the first target follows [B 1 H].
    layered: which keys a layer must not see.
  """

  states: Float[Array, "B T H"]
  mask: Bool[Array, "B T"]
  past: Any
  allowed: Bool[Array, "B K"]
  count: Int[Array, "B 1"]
  opening: Float[Array, "B 1 H"]
  layered: Any


class Inputs(NamedTuple):
  """The first piece of rows: embeddings, prompts among them, and who is who."""

  x: Float[Array, "B T H"]
  rows: Rows
  held: Bool[Array, "B T"]
  index: Int[Array, "B T"]
  offset: Any


@dataclasses.dataclass(frozen=True)
class Decoder(Pure):
  """A backbone of one architecture; weights travel beside it.

  Attributes:
    config: the architecture. found: see `Pure`.
  """

  config: DecoderConfig
  found: dict[str, Array] | None = dataclasses.field(default=None, compare=False)

  family = "decoder"
  network = Transformer
  # What heads may read, and objectives that compare layers.
  views = views.VIEWS
  traces = traces.names("decoder")

  @property
  def spec(self) -> Spec:
    config = self.config
    sizes = config.emb_dim, config.vocab_size
    return Spec(*sizes, places(config), ids=config.ids)

  @property
  def format(self) -> Causal:
    return Causal(self.config.ids)

  @property
  def heads(self) -> tuple[int, int]:
    """(G, D) of keys and values."""
    return self.config.num_kv_heads, self.config.head_dim

  def check_device(self) -> None:
    """It runs anywhere."""

  def _first_inputs(self) -> tuple[Array, Array, Array]:
    ids = jnp.zeros((1, 2), jnp.int32)
    return ids, ids, jnp.ones((1, 2, 2), bool)

  def embed(self, params: Params, ids: Int[Array, "*X"]) -> Float[Array, "*X H"]:
    # What pads is no row of the table.
    return self.apply(params, "embed", jnp.maximum(ids, 0))

  def encode_rows(
    self,
    params: Params,
    embeddings_BTH: Float[Array, "B T H"],
    mask_BT: Bool[Array, "B T"],
    segments_BT: Int[Array, "B T"] | None = None,
  ) -> Float[Array, "B T H"]:
    """Last states of rows without a prompt, packed or not, dropout off."""
    group_BT = mask_BT.astype(jnp.int32) if segments_BT is None else segments_BT
    row = Rows(group_BT, mask_BT)
    self._check_length(group_BT.shape[1], segments_BT)
    given = embeddings_BTH, row.places(), row.pairs(), PerLayer()
    return self.apply(params, "decode", *given)[0]

  def run(
    self,
    params: Params,
    batch: dict[str, Array],
    injection: Injection | None = None,
    key: Any = None,
  ) -> tuple[Float[Array, "B U H"], Reading]:
    """States of which the targets' logits are made, and what came of the inputs."""
    injection, ids = injection or Injection(), self.config.ids
    first, targets = self._inputs(params, batch, injection), rows.targets(batch, ids)
    x_BUH = self.embed(params, batch["decoder_inputs"])
    if first.offset is not None:
      # The last token of a text stands here, with what is added to it.
      at_BU = rows.openings(batch, ids, first.rows.group, targets.group)
      packed_BU = batch.get("decoder_segment_ids")
      x_BUH = inject.add(x_BUH, first.offset.vectors, at_BU, packed_BU)
    U = x_BUH.shape[1]
    whole = Inputs(
      jnp.concatenate([first.x, x_BUH], axis=1),
      first.rows.beside(targets),
      jnp.pad(first.held, ((0, 0), (0, U))),
      jnp.pad(first.index, ((0, 0), (0, U)), constant_values=-1),
      None,
    )
    packed = "segment_ids" in batch
    states_BXH, *rest = self._decode(params, whole, packed, injection, key)
    if self.found is not None:
      self._keep_targets(U)
    reading = self._reading(first, states_BXH[:, :-U], *rest, x_BUH[:, :1], U)
    return states_BXH[:, -U:], reading

  def _keep_targets(self, U: int) -> None:
    """Of what was traced, what happened at the targets."""
    self.found.update({name: x[:, :, -U:] for name, x in self.found.items()})

  def read(
    self,
    params: Params,
    batch: dict[str, Array],
    injection: Injection | None = None,
    key: Any = None,
  ) -> Reading:
    """The inputs alone, one example a row."""
    injection = injection or Injection()
    first = self._inputs(params, batch, injection)
    packed = "segment_ids" in batch
    states_BTH, *rest = self._decode(params, first, packed, injection, key)
    return self._reading(first, states_BTH, *rest, self._opening(params, batch, first))

  def _opening(self, params: Params, batch: Any, first: Inputs) -> Array:
    """Embedding of each text's last token; of the start where there is none."""
    ids = self.config.ids
    last_B1 = rows.last(batch, ids)
    start = self.embed(params, jnp.full((1, 1), ids.start))
    if batch["inputs"].shape[1] == 0:
      return jnp.broadcast_to(start, (last_B1.shape[0], *start.shape[1:]))
    any_B11 = (texts.places(batch, ids) >= 0).any(axis=1)[:, None, None]
    return jnp.where(
      any_B11, jnp.take_along_axis(first.x, last_B1[..., None], axis=1), start
    )

  def _inputs(self, params: Params, batch: Any, injection: Injection) -> Inputs:
    ids, segments_BT = self.config.ids, batch.get("segment_ids")
    x_BTH = self.embed(params, batch["inputs"])
    index_BT = batch.get("prompt_index")
    if index_BT is None:
      index_BT = jnp.full(batch["inputs"].shape, -1)
    offset, slots = injection.get("decoder.offset"), injection.get("decoder.input")
    if offset is not None:
      places_BT = texts.places(batch, ids)
      x_BTH = inject.add(x_BTH, offset.vectors, places_BT, segments_BT)
    if slots is not None:
      own_BT = layered.of_input(index_BT, injection.get("decoder.layers"))
      x_BTH = inject.fill(x_BTH, slots.vectors, own_BT, segments_BT)
    return Inputs(x_BTH, *rows.inputs(batch, ids, injection), index_BT, offset)

  def _decode(
    self, params: Params, given: Inputs, packed: bool, injection: Injection, key: Any
  ) -> tuple[Array, Any, Any, Any]:
    """Last states, keys and values of the tokens, a prefix, and marks of layers."""
    (B, X), row = given.index.shape, given.rows
    segments_BX, config = row.group if packed else None, self.config
    self._check_length(X, segments_BX)
    prefix, places_BX = self._prefix(injection, B, segments_BX), row.places()
    allowed_BXK, front = row.pairs(), 0
    if prefix is not None:
      front, places_BX = prefix.allowed.shape[-1], places_BX + prefix.length
      seen_BXP = jnp.broadcast_to(prefix.allowed[:, 0], (B, X, front))
      allowed_BXK = jnp.concatenate([seen_BXP, allowed_BXK], axis=-1)
    held, placed = injection.get("decoder.layers"), None
    if held is not None:
      tokens_BX = given.held
      marks = given.index, front, 0, segments_BX, tokens_BX
      depth = config.num_decoder_layers, config.scan_layers
      placed = layered.layered(held, *depth, *marks)
    changed = self.changed(injection, B, segments_BX)
    per_layer = PerLayer(
      past=prefix and prefix.layers,
      changes=changed or None,
      turns=placed and placed.layers,
    )
    states_BXH, keys_values = self.apply(
      params,
      "decode",
      given.x,
      places_BX,
      allowed_BXK,
      per_layer,
      None,
      placed and placed.slots,
      key=key,
    )
    return states_BXH, keys_values, prefix, placed

  def _reading(
    self,
    first: Inputs,
    states_BTH: Array,
    keys_values: Any,
    prefix: Any,
    placed: Any,
    opening_B1H: Array,
    targets: int = 0,
  ) -> Reading:
    axis = self.cache_axis + 1

    def own(x: Array) -> Array:
      return jax.lax.slice_in_dim(x, 0, x.shape[axis] - targets, axis=axis)

    past, allowed_BK, length = jax.tree.map(own, keys_values), first.rows.seen, 0
    if prefix is not None:
      past = jax.tree.map(
        lambda one, x: jnp.concatenate([one.astype(x.dtype), x], axis=axis),
        prefix.layers,
        past,
      )
      length, B = prefix.length, allowed_BK.shape[0]
      seen_BP = jnp.broadcast_to(prefix.allowed[:, 0, 0], (B, prefix.allowed.shape[-1]))
      allowed_BK = jnp.concatenate([seen_BP, allowed_BK], axis=1)
    count_B1 = first.rows.seen.sum(axis=1, keepdims=True) + length
    rest = past, allowed_BK, count_B1, opening_B1H, layered.written(placed)
    return Reading(states_BTH, first.held, *rest)

  def _prefix(self, injection: Injection, B: int, segments_BX: Any = None) -> Any:
    held = injection.get("decoder.kv")
    if held is None:
      return None
    vectors, scanned = (held.vectors, held.mask), self.config.scan_layers
    return prefixes.prefix(*vectors, B, segments_BX, self.heads, scanned)

  def changed(self, injection: Injection | None, *rows: Any) -> Any:
    inputs = {name: tables.inputs for name, tables in self.spec.places.items()}
    return changes.of(injection, "decoder", inputs, *rows)

  def _check_length(self, X: Any, segments: Any) -> None:
    """Refuses what a learned table of positions cannot place."""
    config = self.config
    if config.positions != "learned" or segments is not None or not isinstance(X, int):
      return
    # The last token of an input stands in both pieces.
    if X - 1 > config.num_positions:
      raise ValueError(
        f"Prompt, input and targets take {X - 1} positions, but this model has "
        f"{config.num_positions}: lower TASK_FEATURE_LENGTHS (`lengths`) or "
        "PROMPT_LENGTH."
      )

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
    """One vector an example, for heads; see `backbones.decoder.views`."""
    del params, injection, key, front
    return views.of(name, reading.states, batch, segments, self.config.ids)

  def continued(
    self,
    params: Params,
    reading: Reading,
    targets_BU: Int[Array, "B U"],
    injection: Injection | None = None,
    key: Any = None,
  ) -> Float[Array, "B U H"]:
    """States of targets behind what was read; mapped over targets, it stays one."""
    rest_BUH = self.embed(params, targets_BU[:, :-1])
    x_BUH = jnp.concatenate([reading.opening, rest_BUH], axis=1)
    B, U = targets_BU.shape
    places_BU = reading.count + jnp.arange(U)[None]
    front_BUK = jnp.broadcast_to(
      reading.allowed[:, None], (B, U, reading.allowed.shape[1])
    )
    causal_BUU = jnp.broadcast_to(jnp.tril(jnp.ones((U, U), bool)), (B, U, U))
    allowed_BUK = jnp.concatenate([front_BUK, causal_BUU], axis=-1)
    held = reading.layered
    per_layer = PerLayer(
      past=reading.past,
      changes=self.changed(injection, B) or None,
      turns=held and held.layers,
    )
    given = x_BUH, places_BU, allowed_BUK, per_layer, None, held and held.slots
    return self.apply(params, "decode", *given, key=key)[0]

  def prefill(
    self,
    params: Params,
    reading: Reading,
    room: int,
    injection: Injection | None = None,
  ) -> tuple[Float[Array, "B V"], cached.Memory, cached.Cache]:
    """Logits of the first token, what every step reads, and the cache they hand on.

    Args:
      params: the weights. reading: of `read`. room: tokens that will be fed back.
      injection: what the prompt asks for, or None.
    """
    return cached.prefill(self, params, reading, room, injection)

  def extend(
    self,
    params: Params,
    ids_B: Int[Array, " B"],
    memory: cached.Memory,
    cache: cached.Cache,
    index: Int[Array, ""],
  ) -> tuple[Float[Array, "B V"], cached.Cache]:
    """Logits after the token at place `index` (from 0), and the cache with it."""
    x_B1H = self.embed(params, ids_B)[:, None]
    return cached.step(self, params, x_B1H, memory, cache, index + 1)

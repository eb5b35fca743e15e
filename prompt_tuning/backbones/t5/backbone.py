"""A T5 as the rest of the library sees it: pure functions of a parameter tree.

The only reader of `Injection` for this family. Parameters are the tree that
`network.Transformer` makes, named as T5X names them.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax.core import unfreeze
from flax.linen import partitioning
from jaxtyping import Array, Bool, Float, Int

from prompt_tuning.backbones.t5 import changes, fused, int8, layered, views
from prompt_tuning.backbones.t5 import prefix as prefixes
from prompt_tuning.backbones.t5.config import SWITCHES, T5Config
from prompt_tuning.backbones.t5.network import Transformer
from prompt_tuning.backbones.t5.places import places
from prompt_tuning.core import injection as inject
from prompt_tuning.core.context import Spec
from prompt_tuning.core.injection import Injection

Params = Any
Cache = Any


# The id that targets begin with.
START = 0


@flax.struct.dataclass
class Memory:
  """What every step of decoding reads and none changes.

  Attributes:
    cross: keys and values of each layer's cross-attention.
    mask: true where one may be attended to [B T].
    changes: of the decoder's layers.
    layered: which keys a layer must not see.
    opening: places before the first written token.
  """

  cross: Any
  mask: Bool[Array, "B T"]
  changes: Any
  layered: Any
  opening: int = flax.struct.field(pytree_node=False)


def text_places(batch: dict[str, Array]) -> Int[Array, "B T"]:
  """Place of each token in its own text, reserved positions left out; -1 elsewhere."""
  inputs_BT = batch["inputs"]
  text_BT = inputs_BT > 0
  if "prompt_index" in batch:
    text_BT &= batch["prompt_index"] < 0
  before_BT = jnp.cumsum(text_BT, axis=1) - 1
  segments_BT = batch.get("segment_ids")
  if segments_BT is not None:
    # Counted anew from the first token of each example.
    earlier_BT = jnp.pad(segments_BT, ((0, 0), (1, 0)))[:, :-1]
    first_BT = jnp.where(segments_BT != earlier_BT, jnp.cumsum(text_BT, axis=1), 0)
    starts_BT = first_BT - jnp.where(segments_BT != earlier_BT, text_BT, False)
    before_BT = before_BT - jax.lax.cummax(starts_BT, axis=1)
  return jnp.where(text_BT, before_BT, -1)


@dataclasses.dataclass(frozen=True)
class T5:
  """A backbone of one architecture; weights travel beside it.

  Attributes:
    config: the architecture.
  """

  config: T5Config

  family = "t5"
  # What heads may read.
  views = views.VIEWS

  @property
  def spec(self) -> Spec:
    config = self.config
    return Spec(config.emb_dim, config.vocab_size, places(config))

  @property
  def cache_axis(self) -> int:
    """Which axis of a cache's arrays is the batch."""
    return 1 if self.config.scan_layers else 0

  def module(self, train: bool = False) -> Transformer:
    return Transformer(self.config, train)

  def recast(self, **switches: Any) -> "T5":
    """The same architecture with other switches, such as dropout_rate=0.1.

    Raises:
      ValueError: for a switch that there is not, or that does not fit the others.
    """
    unknown = sorted(set(switches) - set(SWITCHES))
    if unknown:
      raise ValueError(f"{unknown} are no switches; there are {list(SWITCHES)}.")
    return T5(dataclasses.replace(self.config, **switches))

  def check_device(self) -> None:
    """Raises ValueError for a switch that this machine cannot follow."""
    fused.check(self.config.attention)

  def init(self, key: Any) -> Params:
    """Random weights, drawn as T5 draws them."""
    return self._init(key)["params"]

  def logical_axes(self) -> Params:
    """The logical axis names of every parameter, as a tree of tuples."""
    shapes = jax.eval_shape(self._init, jax.random.key(0))
    specs = unfreeze(partitioning.get_axis_names(shapes["params_axes"]))
    # A PartitionSpec is a tuple in some versions of JAX only.
    return jax.tree.map(tuple, specs, is_leaf=lambda x: not isinstance(x, dict))

  def shapes(self) -> Params:
    """Shapes and dtypes of the weights; nothing is allocated."""
    return jax.eval_shape(self.init, jax.random.key(0))

  def held_shapes(self) -> Params:
    """The same, as `T5Config.weights_dtype` says to keep weights once they are read."""
    dtype = self.config.weights_dtype
    if dtype == "int8":
      return int8.shapes(self.shapes())
    return jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype), self.shapes()
    )

  def _init(self, key: Any) -> Any:
    ids = jnp.ones((1, 2), jnp.int32)
    return self.module().init(key, ids, ids)

  def table(self, params: Params) -> Float[Array, "V H"]:
    """The token table."""
    table = params["token_embedder"]["embedding"]
    return table.wide() if isinstance(table, int8.Quantised) else table

  def embed(self, params: Params, ids: Int[Array, "*X"]) -> Float[Array, "*X H"]:
    return self._apply(params, "embed", ids)

  def encode_rows(
    self,
    params: Params,
    embeddings_BTH: Float[Array, "B T H"],
    mask_BT: Bool[Array, "B T"],
    segments_BT: Int[Array, "B T"] | None = None,
  ) -> Float[Array, "B T H"]:
    """Encodings of rows without a prompt, packed or not, dropout off."""
    return self._apply(params, "encode", embeddings_BTH, mask_BT, segments_BT)

  def encode(
    self,
    params: Params,
    batch: dict[str, Array],
    injection: Injection | None = None,
    key: Any = None,
  ) -> tuple[Float[Array, "B T H"], Bool[Array, "B T"]]:
    """Encodings of a batch and which of them the decoder may attend to.

    Args:
      params: the weights.
      batch: `inputs`; `prompt_index` where positions are reserved; `segment_ids` where
        rows are packed.
      injection: what the prompt asks for, or None.
      key: dropout key; None switches dropout off.
    """
    inputs_BT = batch["inputs"]
    x_BTH = self.embed(params, inputs_BT)
    mask_BT = inputs_BT > 0
    segments_BT = batch.get("segment_ids")
    injection = injection or Injection()
    offset, slots = injection.get("encoder.offset"), injection.get("encoder.input")
    if offset is not None:
      places_BT = text_places(batch)
      x_BTH = inject.add(x_BTH, offset.vectors, places_BT, segments_BT)
    held, index_BT = injection.get("encoder.layers"), batch.get("prompt_index")
    if held is not None:
      mask_BT &= layered.visible(held, index_BT, segments_BT)
    if slots is not None:
      index_BT = layered.of_input(batch["prompt_index"], held)
      x_BTH = inject.fill(x_BTH, slots.vectors, index_BT, segments_BT)
      if slots.mask is not None:
        mask_BT &= inject.visible(slots.mask, index_BT, segments_BT)
    B = x_BTH.shape[0]
    prefix = self._prefix(injection.get("encoder.kv"), B, segments_BT)
    changed = self._changes(injection, "encoder", B, segments_BT)
    placed = None
    if held is not None:
      front = 0 if prefix is None else prefix.allowed.shape[-1]
      rows = batch["prompt_index"], front, 0, segments_BT, inputs_BT > 0
      placed = layered.layered(held, "encoder", self.config, *rows)
    encoded_BTH = self._apply(
      params, "encode", x_BTH, mask_BT, segments_BT, prefix, changed, placed, key=key
    )
    return encoded_BTH, mask_BT

  def _prefix(self, held: Any, B: int, segments_BT: Any = None) -> Any:
    if held is None:
      return None
    vectors = held.vectors, held.mask
    return prefixes.prefix(*vectors, B, segments_BT, self.config)

  def _changes(self, injection: Injection | None, stack: str, *rows: Any) -> Any:
    inputs = {name: tables.inputs for name, tables in self.spec.places.items()}
    return changes.of(injection, stack, inputs, *rows)

  def states(
    self,
    params: Params,
    batch: dict[str, Array],
    encoded_BTH: Float[Array, "B T H"],
    encoder_mask_BT: Bool[Array, "B T"],
    injection: Injection | None = None,
    key: Any = None,
  ) -> Float[Array, "B U H"]:
    """The decoder's states at every target position (`decoder_inputs` are shifted)."""
    x_BUH = self.embed(params, batch["decoder_inputs"])
    segments_BU = batch.get("decoder_segment_ids")
    segments_BT = batch.get("segment_ids")
    injection = injection or Injection()
    slots, held = injection.get("decoder.input"), injection.get("decoder.layers")
    if slots is not None:
      index_BU = layered.of_input(batch["decoder_prompt_index"], held)
      x_BUH = inject.fill(x_BUH, slots.vectors, index_BU, segments_BU)
    B = x_BUH.shape[0]
    prefix, placed = self._prefix(injection.get("decoder.kv"), B, segments_BU), None
    if held is not None:
      front = 0 if prefix is None else prefix.allowed.shape[-1]
      rows = batch["decoder_prompt_index"], front, 0, segments_BU
      placed = layered.layered(held, "decoder", self.config, *rows)
    return self._apply(
      params,
      "decode",
      x_BUH,
      encoded_BTH,
      encoder_mask_BT,
      segments_BU,
      segments_BT,
      prefix,
      self._prefix(injection.get("cross.kv"), B, segments_BU),
      self._changes(injection, "decoder", B, segments_BU, segments_BT),
      placed,
      key=key,
    )

  def view(
    self,
    params: Params,
    name: str,
    batch: dict[str, Array],
    encoded_BTH: Float[Array, "B T H"],
    encoder_mask_BT: Bool[Array, "B T"],
    injection: Injection | None = None,
    key: Any = None,
    front: int = 0,
    segments: int = 1,
  ) -> Float[Array, "R H"]:
    """One vector an example, for heads; see `backbones.t5.views`.

    Args:
      params: the weights. name: one of `views`. batch: as for `encode`.
      encoded_BTH, encoder_mask_BT, injection, key: as for `states`.
      front: positions of the decoder's prompt. segments: S.
    """
    if name == "mean":
      return views.mean(encoded_BTH, batch, segments)
    begun = views.start(batch, front, segments)
    rest = encoder_mask_BT, injection, key
    states_BUH = self.states(params, begun, encoded_BTH, *rest)
    return states_BUH[:, front :: front + 1].reshape(-1, self.spec.width)

  def decode(self, params: Params, *args: Any, **kwargs: Any) -> Float[Array, "B U V"]:
    """float32 logits at every target position; arguments are those of `states`."""
    return self.logits(params, self.states(params, *args, **kwargs))

  def logits(
    self, params: Params, states: Float[Array, "*X H"]
  ) -> Float[Array, "*X V"]:
    """float32 logits of the decoder's states."""
    return self._apply(params, "logits", states).astype(jnp.float32)

  def prefill(
    self,
    params: Params,
    encoded_BTH: Float[Array, "B T H"],
    mask_BT: Bool[Array, "B T"],
    room: int,
    injection: Injection | None = None,
  ) -> tuple[Float[Array, "B V"], Any, Cache]:
    """What decoding starts from: the prompt and the start token are read.

    Args:
      params: the weights. encoded_BTH, mask_BT: of `encode`.
      room: tokens that will be fed back. injection: what the prompt asks for, or None.

    Returns:
      Logits of the first token; what all later steps read (`extend`'s `memory`); and
      the cache that they hand on, whose rows lie along `cache_axis`.
    """
    injection = injection or Injection()
    config, B = self.config, encoded_BTH.shape[0]
    changed = self._changes(injection, "decoder", B)
    across = self._prefix(injection.get("cross.kv"), B)
    cross = self._apply(params, "cross", encoded_BTH, across, changed)
    if across is not None:
      allowed_BP = jnp.broadcast_to(across.allowed[:, 0, 0], (B, across.length))
      mask_BT = jnp.concatenate([allowed_BP, mask_BT], axis=1)
    start_BUH = self.embed(params, jnp.full((B, 1), START))
    slots, held = injection.get("decoder.input"), injection.get("decoder.layers")
    if slots is not None:
      rows = jnp.broadcast_to(slots.vectors, (B, *slots.vectors.shape[1:]))
      start_BUH = jnp.concatenate([rows.astype(start_BUH.dtype), start_BUH], axis=1)
    if held is not None:
      # What stands there before the first layer is replaced when it is first seen.
      blank = jnp.zeros((B, held.length, config.emb_dim), start_BUH.dtype)
      start_BUH = jnp.concatenate([blank, start_BUH], axis=1)
    U, own, first = start_BUH.shape[1], injection.get("decoder.kv"), 0
    shape = config.num_decoder_layers, B, U + room, config.num_heads, config.head_dim
    cache = jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype)
    if own is not None:
      first = own.vectors.shape[-2]
      before = prefixes.stacked(own.vectors, B, config)
      cache = tuple(
        jnp.concatenate([x.astype(config.dtype), free], axis=2)
        for x, free in zip(before, cache, strict=True)
      )
    cache = prefixes.per_layer(cache, config)
    placed = None
    if held is not None:
      index_U = jnp.append(jnp.arange(U - 1, dtype=jnp.int32), -1)
      rows = jnp.broadcast_to(index_U, (B, U)), first, room
      placed = layered.layered(held, "decoder", config, *rows)
    memory = Memory(cross, mask_BT, changed, placed, first + U)
    logits_BV, cache = self._step(params, start_BUH, memory, cache, jnp.int32(first))
    memory = memory.replace(layered=layered.written(placed))
    return logits_BV, memory, cache

  def extend(
    self,
    params: Params,
    ids_B: Int[Array, " B"],
    memory: "Memory",
    cache: Cache,
    index: Int[Array, ""],
  ) -> tuple[Float[Array, "B V"], Cache]:
    """Logits after the token at place `index` (from 0), and the cache with it."""
    x_BUH = self.embed(params, ids_B)[:, None]
    return self._step(params, x_BUH, memory, cache, memory.opening + index)

  def _step(
    self,
    params: Params,
    x_BUH: Float[Array, "B U H"],
    memory: "Memory",
    cache: Cache,
    index: Int[Array, ""],
  ) -> tuple[Float[Array, "B V"], Cache]:
    rest = memory.mask, memory.changes, memory.layered
    states_BUH, cache = self._apply(
      params, "step", x_BUH, memory.cross, cache, index, *rest
    )
    return self.logits(params, states_BUH[:, -1]), cache

  def _apply(self, params: Params, method: str, *args: Any, key: Any = None) -> Any:
    rngs = None
    if key is not None:
      # Encoder and decoder must not drop the same places.
      rngs = {"dropout": jax.random.fold_in(key, ("encode", "decode").index(method))}
    module = self.module(train=key is not None)
    return module.apply({"params": params}, *args, rngs=rngs, method=method)

"""Decoding with a T5: what its steps read, and the cache that they hand on."""

from typing import Any

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from prompt_tuning.backbones.common import layered, prefix
from prompt_tuning.backbones.t5.config import IDS
from prompt_tuning.core.injection import Injection

Params = Any
Cache = Any


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


def prefill(
  backbone: Any,
  params: Params,
  encoded_BTH: Float[Array, "B T H"],
  mask_BT: Bool[Array, "B T"],
  room: int,
  injection: Injection,
) -> tuple[Float[Array, "B V"], Memory, Cache]:
  """`T5.prefill` of encodings and which of them may be attended to."""
  config, B = backbone.config, encoded_BTH.shape[0]
  changed = backbone.changed(injection, "decoder", B)
  across = backbone.prefixed(injection.get("cross.kv"), B)
  cross = backbone.apply(params, "cross", encoded_BTH, across, changed)
  if across is not None:
    allowed_BP = jnp.broadcast_to(across.allowed[:, 0, 0], (B, across.length))
    mask_BT = jnp.concatenate([allowed_BP, mask_BT], axis=1)
  start_BUH, held = _opening(backbone, params, B, injection)
  U, own, first = start_BUH.shape[1], injection.get("decoder.kv"), 0
  shape = config.num_decoder_layers, B, U + room, config.num_heads, config.head_dim
  cache = jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype)
  if own is not None:
    first = own.vectors.shape[-2]
    before = prefix.stacked(own.vectors, B, (config.num_heads, config.head_dim))
    cache = tuple(
      jnp.concatenate([x.astype(config.dtype), free], axis=2)
      for x, free in zip(before, cache, strict=True)
    )
  cache = prefix.per_layer(cache, config.scan_layers)
  placed = None
  if held is not None:
    index_U = jnp.append(jnp.arange(U - 1, dtype=jnp.int32), -1)
    rows = jnp.broadcast_to(index_U, (B, U)), first, room
    placed = layered.layered(held, *backbone.walked("decoder"), *rows)
  memory = Memory(cross, mask_BT, changed, placed, first + U)
  logits_BV, cache = step(backbone, params, start_BUH, memory, cache, jnp.int32(first))
  memory = memory.replace(layered=layered.written(placed))
  return logits_BV, memory, cache


def _opening(
  backbone: Any, params: Params, B: int, injection: Injection
) -> tuple[Float[Array, "B U H"], Any]:
  """What the decoder reads before it writes, and the record of its layers' places."""
  start_BUH = backbone.embed(params, jnp.full((B, 1), IDS.start))
  slots, held = injection.get("decoder.input"), injection.get("decoder.layers")
  if slots is not None:
    rows = jnp.broadcast_to(slots.vectors, (B, *slots.vectors.shape[1:]))
    start_BUH = jnp.concatenate([rows.astype(start_BUH.dtype), start_BUH], axis=1)
  if held is not None:
    # What stands there before the first layer is replaced when it is first seen.
    blank = jnp.zeros((B, held.length, backbone.config.emb_dim), start_BUH.dtype)
    start_BUH = jnp.concatenate([blank, start_BUH], axis=1)
  return start_BUH, held


def step(
  backbone: Any,
  params: Params,
  x_BUH: Float[Array, "B U H"],
  memory: Memory,
  cache: Cache,
  index: Int[Array, ""],
) -> tuple[Float[Array, "B V"], Cache]:
  """Logits after the next U tokens, the first at place `index` of the cache."""
  rest = memory.mask, memory.changes, memory.layered
  states_BUH, cache = backbone.apply(
    params, "step", x_BUH, memory.cross, cache, index, *rest
  )
  return backbone.logits(params, states_BUH[:, -1]), cache

"""Decoding with a decoder: what its steps read, and the cache that they hand on.

What was read before stays where it is, one a row, padded behind; the cache holds what
is written alone. So rows of different lengths need no padding in front: each token's
place is that of its own row.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from prompt_tuning.backbones.common import prefix
from prompt_tuning.backbones.decoder.network import PerLayer
from prompt_tuning.core.injection import Injection

Params = Any
Cache = Any


@flax.struct.dataclass
class Memory:
  """What every step of decoding reads and none changes.

  Attributes:
    past: keys and values of each layer. allowed: which of them are seen [B K].
    count: places before the first token that is fed [B 1].
    changes: of the layers. layered: which keys a layer must not see.
  """

  past: Any
  allowed: Bool[Array, "B K"]
  count: Int[Array, "B 1"]
  changes: Any
  layered: Any


def prefill(
  backbone: Any, params: Params, reading: Any, room: int, injection: Injection | None
) -> tuple[Float[Array, "B V"], Memory, Cache]:
  """`Decoder.prefill`: the opening token is read, and the cache begins with it."""
  config, B = backbone.config, reading.opening.shape[0]
  _check_room(config, reading, room)
  shape = config.num_decoder_layers, B, 1 + room, *backbone.heads
  blank = jnp.zeros(shape, config.dtype)
  cache = prefix.per_layer((blank, blank), config.scan_layers)
  changed = backbone.changed(injection, B)
  seen = reading.past, reading.allowed, reading.count
  memory = Memory(*seen, changed, reading.layered)
  given = reading.opening, memory, cache, jnp.int32(0)
  logits_BV, cache = step(backbone, params, *given)
  return logits_BV, memory, cache


def _check_room(config: Any, reading: Any, room: int) -> None:
  """Refuses answers that a learned table of positions cannot place, where it shows."""
  if config.positions != "learned" or isinstance(reading.count, jax.core.Tracer):
    return
  most = int(reading.count.max()) + 1 + room
  if most > config.num_positions:
    raise ValueError(
      f"Prompt, input and answer take {most} positions, but this model has "
      f"{config.num_positions}: ask for fewer `steps` (DECODE_STEPS), or give less."
    )


def step(
  backbone: Any,
  params: Params,
  x_B1H: Float[Array, "B 1 H"],
  memory: Memory,
  cache: Cache,
  index: Int[Array, ""],
) -> tuple[Float[Array, "B V"], Cache]:
  """Logits after the next token, at place `index` of the cache."""
  B, room = x_B1H.shape[0], jax.tree.leaves(cache)[0].shape[-3]
  own_BX = jnp.broadcast_to(jnp.arange(room)[None] <= index, (B, room))
  allowed_BK = jnp.concatenate([memory.allowed, own_BX], axis=1)
  held = memory.layered
  per_layer = PerLayer(memory.past, cache, memory.changes or None, held and held.layers)
  states_B1H, cache = backbone.apply(
    params,
    "decode",
    x_B1H,
    memory.count + index,
    allowed_BK[:, None],
    per_layer,
    index,
    held and held.slots,
  )
  return backbone.logits(params, states_B1H[:, -1]), cache

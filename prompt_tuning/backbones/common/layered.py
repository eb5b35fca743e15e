"""A prompt's states, layer by layer: written at its slots before a layer runs.

The slots of each part of "layers" come first among the reserved positions, in order,
then those of "input". Where layers are scanned, what a layer does is a number in an
array; otherwise it is known before anything runs, and doing nothing costs nothing.
"""

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from prompt_tuning.backbones.common.attend import mask_bias
from prompt_tuning.core import injection as inject
from prompt_tuning.core import partition
from prompt_tuning.core.context import of_each
from prompt_tuning.core.layers import Layers, Part

# What a part does in a layer.
HIDDEN, REPLACES, ADDS, RESTS = range(4)


@flax.struct.dataclass
class Turn:
  """What one part does in one layer (in a scan: in all, with a leading axis).

  Attributes:
    table: [R P H]; None where a reader makes it, or where it is the same in all layers.
    own: parameters of a reader for this layer, or None.
    turn: one of HIDDEN ... RESTS, in a scan; else None, and `known` says it.
  """

  table: Float[Array, "*L R P H"] | None = None
  own: Any = None
  turn: Int[Array, "*L"] | None = None
  known: int = flax.struct.field(pytree_node=False, default=RESTS)


@flax.struct.dataclass
class Slot:
  """What all layers share of a part.

  Attributes:
    part: it, with tables only where there is one for all layers.
    index: number of its slot at each position, -1 elsewhere [B T]; None where nothing
      is written any more.
    keys: which keys of attention are its slots [#B X].
    text: real tokens of each example [B S T], for a reader; else None.
    segments: 1..S, which example of a packed row a token belongs to [B T], or None.
  """

  part: Part
  index: Int[Array, "B T"] | None
  keys: Bool[Array, "#B X"]
  text: Bool[Array, "B S T"] | None = None
  segments: Int[Array, "B T"] | None = None


@flax.struct.dataclass
class Layered:
  """Attributes:
  layers: turns of each layer, a tuple a layer; layers are a list, or a leading axis of
    all arrays where they are scanned.
  slots: one a part.
  """

  layers: Any
  slots: Sequence[Slot]


def layered(
  held: Layers,
  depth: int,
  scanned: bool,
  index_BT: Int[Array, "B T"],
  front: int,
  room: int = 0,
  segments_BT: Int[Array, "B T"] | None = None,
  tokens_BT: Bool[Array, "B T"] | None = None,
) -> Layered:
  """The walk's share of a record.

  Args:
    held: of a place "layers". depth: layers of the stack. scanned: whether they are.
    index_BT: numbers of reserved positions, -1 elsewhere.
    front: keys that stand before those of the positions.
    room: keys behind those of the positions.
    segments_BT: where rows are packed. tokens_BT: true where nothing is padded; readers
      need it.
  """
  text_BT = None if tokens_BT is None else tokens_BT & (index_BT < 0)
  slots, turns, start = [], [], 0
  for part in held.parts:
    own_BT = (index_BT >= start) & (index_BT < start + part.length)
    keys_BX = jnp.pad(own_BT, ((0, 0), (front, room)))
    mine_BT = jnp.where(own_BT, index_BT - start, -1)
    text_BST = None if part.reader is None else _text(part, text_BT, segments_BT)
    turns.append(_turns(part, depth, scanned))
    kept = part.replace(tables=part.tables if part.once else None)
    slots.append(Slot(kept, mine_BT, keys_BX, text_BST, segments_BT))
    start += part.length
  layers = tuple(turns) if scanned else list(zip(*turns, strict=True))
  return Layered(layers, tuple(slots))


def of_input(index_BT: Int[Array, "B T"], held: Layers | None) -> Int[Array, "B T"]:
  """Numbers of the slots of "input" alone, from 0; -1 elsewhere."""
  return index_BT if held is None else jnp.maximum(index_BT - held.length, -1)


def written(found: Layered | None) -> Layered | None:
  """What later steps of decoding need: which keys are hidden, and where."""
  if found is None:
    return None

  def blank(turn: Turn) -> Turn:
    return turn.replace(table=None, own=None)

  layers = jax.tree.map(blank, found.layers, is_leaf=lambda x: isinstance(x, Turn))
  return Layered(
    layers,
    tuple(
      slot.replace(index=None, part=slot.part.replace(tables=None, reader=None))
      for slot in found.slots
    ),
  )


def visible(
  held: Layers, index_BT: Array, segments_BT: Array | None
) -> Bool[Array, "B T"]:
  """False at the slots that a part's own mask leaves out."""
  seen_BT, start = jnp.ones(index_BT.shape, bool), 0
  for part in held.parts:
    if part.mask is not None:
      own_BT = (index_BT >= start) & (index_BT < start + part.length)
      mine_BT = jnp.where(own_BT, index_BT - start, -1)
      seen_BT &= inject.visible(part.mask, mine_BT, segments_BT)
    start += part.length
  return seen_BT


def marked(x: Float[Array, "B T H"]) -> Float[Array, "B T H"]:
  """Says how the residual stream lies over devices."""
  return partition.placed(x, "batch", "length", "embed")


def obeyed(
  module: Any, x_BTH: Array, bias: Array, turns: Any, slots: Any
) -> tuple[Array, Array]:
  """States with what a prompt writes before a layer, and the bias that hides slots.

  Args:
    module: the layer, of which keys are drawn. turns, slots: see `write`.
  """
  if slots is None:
    return x_BTH, bias
  key = None
  if module.train and any(slot.part.reader is not None for slot in slots):
    key = module.make_rng("dropout")
  return write(x_BTH, turns, slots, key), hidden(bias, turns, slots)


def write(
  x_BTH: Float[Array, "B T H"],
  turns: Sequence[Turn] | None,
  slots: Sequence[Slot],
  key: Any = None,
) -> Float[Array, "B T H"]:
  """States as a layer reads them, each part's own written at its slots."""
  for number, (turn, slot) in enumerate(zip(turns or (), slots or (), strict=True)):
    if slot.index is None or (turn.turn is None and turn.known in (HIDDEN, RESTS)):
      continue
    own_key = None if key is None else jax.random.fold_in(key, number)
    x_BTH = _written(x_BTH, turn, slot, own_key)
  return x_BTH


def hidden(
  bias: Float[Array, "#B N #T X"], turns: Sequence[Turn] | None, slots: Sequence[Slot]
) -> Float[Array, "#B N #T X"]:
  """The bias of a layer, with the slots that it must not see yet masked."""
  for turn, slot in zip(turns or (), slots or (), strict=True):
    if slot.part.first == 0 or (turn.turn is None and turn.known != HIDDEN):
      continue
    keys_BX = slot.keys
    if turn.turn is not None:
      keys_BX &= turn.turn == HIDDEN
    # A kernel's bias is padded.
    rest = bias.shape[-1] - keys_BX.shape[-1]
    keys_BX = jnp.pad(keys_BX, ((0, 0), (0, rest))) if rest else keys_BX
    bias = bias + mask_bias(~keys_BX)[:, None, None].astype(bias.dtype)
  return bias


def _turns(part: Part, depth: int, scanned: bool) -> Any:
  known = [_turn(part, layer) for layer in range(depth)]
  own = part.reader and part.reader.own
  tables = None
  if part.tables is not None and not part.once:
    tables = jnp.moveaxis(part.tables, 1, 0)

  def at(layer: int) -> Turn:
    if known[layer] in (HIDDEN, RESTS):
      return Turn(known=known[layer])
    mine = jax.tree.map(lambda x: x[layer - part.first], (tables, own))
    return Turn(*mine, known=known[layer])

  if not scanned:
    return [at(layer) for layer in range(depth)]

  def spread(x: Array) -> Array:
    before, behind = part.first, depth - part.first - x.shape[0]
    return jnp.pad(x, ((before, behind), *[(0, 0)] * (x.ndim - 1)))

  tables, own = jax.tree.map(spread, (tables, own))
  return Turn(tables, own, jnp.asarray(known, jnp.int32))


def _turn(part: Part, layer: int) -> int:
  if layer <= part.first:
    return REPLACES if layer == part.first else HIDDEN
  if part.once:
    return RESTS
  return ADDS if part.add else REPLACES


def _text(part: Part, text_BT: Array, segments_BT: Array | None) -> Array:
  if segments_BT is None:
    return text_BT[:, None]
  return text_BT[:, None] & of_each(segments_BT, part.segments)


def _written(x_BTH: Array, turn: Turn, slot: Slot, key: Any) -> Array:
  vectors_RPH = turn.table
  if slot.part.reader is not None:
    vectors_RPH = _read(x_BTH, turn, slot, key)
  elif slot.part.once:
    vectors_RPH = slot.part.tables[:, 0]
  chosen_BTH = inject.choose(vectors_RPH, slot.index, slot.segments)
  chosen_BTH = chosen_BTH.astype(x_BTH.dtype)
  mine_BT1 = (slot.index >= 0)[..., None]
  if turn.turn is None:
    new_BTH = chosen_BTH if turn.known == REPLACES else x_BTH + chosen_BTH
    return jnp.where(mine_BT1, new_BTH, x_BTH)
  if slot.part.add:
    base_BTH = jnp.where(turn.turn == REPLACES, 0, x_BTH)
    return jnp.where(mine_BT1 & (turn.turn != HIDDEN), base_BTH + chosen_BTH, x_BTH)
  return jnp.where(mine_BT1 & (turn.turn == REPLACES), chosen_BTH, x_BTH)


def _read(x_BTH: Array, turn: Turn, slot: Slot, key: Any) -> Float[Array, "R P H"]:
  reader, (B, S, _) = slot.part.reader, slot.text.shape
  shape = B * S, slot.part.length, x_BTH.shape[-1]

  def make(x_BTH: Array) -> Array:
    made_BSPH = reader.make(reader.shared, turn.own, x_BTH, slot.text, key)
    return made_BSPH.reshape(shape).astype(jnp.float32)

  if turn.turn is None:
    return make(x_BTH)
  # In a scan, only the layers where the part acts pay for its reader.
  acts = (turn.turn == REPLACES) | (turn.turn == ADDS)
  return jax.lax.cond(acts, make, lambda _: jnp.zeros(shape, jnp.float32), x_BTH)

"""What a prompt does to the states of its virtual positions, layer by layer.

A part stands at P positions of its own. Before its layer `first` nobody may attend to
them, so that it is as if they were put in there:

  l < first    hidden
  l = first    states = table[0]
  l > first    states = table[l - first]                  by default
               states = states + table[l - first]         `add`
               states                                     `once`: one table in all

A table is given, or a Reader makes it of the states of the text at that layer.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import flax.struct
import jax
from jaxtyping import Array, Bool, Float, Int

from prompt_tuning.core.place import Place

# (shared, own, states [B T H], text [B S T], key or None) -> vectors [B S P H].
Make = Callable[[Any, Any, Array, Array, Any], Array]


@flax.struct.dataclass
class Reader:
  """Makes a layer's table of the states of the text.

  Attributes:
    shared: parameters of all layers. own: of each layer, in arrays [G ...].
    make: a pure function, a word that compares by its fields. `states` are those that
      the layer is about to read [B T H]; `text` is true where a position holds a real
      token of the s-th example of a row, prompt positions left out [B S T]; `key` is
      for its dropout, None where nothing is dropped.
  """

  shared: Any
  own: Any
  make: Make = flax.struct.field(pytree_node=False)


@flax.struct.dataclass
class Part:
  """One prompt at P positions of its own.

  Attributes:
    tables: of the layers that it acts in, from `first` on [R G P H]; None where a
      reader makes them.
    mask: false where a position must not be attended to [R P]; None for all true.
    reader: makes the tables, or None.
    length: P. first: the first layer that sees them, from 0; None for the middle of the
      stack. add, once: see above.
    segments: S, examples in a row, of what a reader reads.
  """

  tables: Float[Array, "R G P H"] | None = None
  mask: Bool[Array, "R P"] | None = None
  reader: Reader | None = None
  length: int = flax.struct.field(pytree_node=False, default=1)
  first: int = flax.struct.field(pytree_node=False, default=0)
  add: bool = flax.struct.field(pytree_node=False, default=False)
  once: bool = flax.struct.field(pytree_node=False, default=False)
  segments: int = flax.struct.field(pytree_node=False, default=1)


@flax.struct.dataclass
class Layers(Place):
  """Parts that stand side by side, in front of the slots of "input" if there are any.

  Whoever comes later into the stack stands further out, so that nobody's distances
  change when it comes: of several parts, put the latest first.
  """

  positions: ClassVar[bool] = True
  parts: Sequence[Part]

  @property
  def length(self) -> int:
    """Positions of all parts."""
    return sum(part.length for part in self.parts)

  @classmethod
  def of(cls, tables_RGPH: Array, mask_RP: Array | None) -> "Layers":
    return cls((Part(tables_RGPH, mask_RP, length=tables_RGPH.shape[2]),))

  def beside(self, other: "Layers") -> "Layers":
    return Layers((*self.parts, *other.parts))

  def pick(self, rows_B: Int[Array, " B"]) -> "Layers":
    if any(part.reader is not None for part in self.parts):
      raise ValueError(
        "A prompt that reads the states of a layer has the same weights for every "
        "example: rows cannot be picked of it."
      )
    return jax.tree.map(lambda x: x[rows_B], self)

"""Where a prompt may act: the places of a backbone, and the records they hold.

A place is a name such as "encoder.input" or "decoder.self.key.scale"; its last word
says which record stands there. A backbone lists its places in `Spec.places`, name ->
(G, width): how many tables a prompt must draw, and how wide they are.

  input    Slots       vectors at virtual positions (prompt tuning)
  kv       KeysValues  keys and values beside those of the tokens (prefix tuning)
  layers   Layers      states of virtual positions, layer by layer (deep, late prompts)
  offset   Offset      added to the embeddings of the text, position by position (DePT)
  scale    Scale       multiplies an inner vector in every layer ((IA)3)
  shift    Shift       added to an inner vector in every layer (BitFit)
  weight   LowRank     a low-rank change of a kernel in every layer (LoRA)
  adapter  Adapter     a bottleneck behind a sublayer in every layer (adapters)

A record knows how two of its kind act side by side (`beside`), and how each row picks
its own among several (`pick`). R is 1 for a prompt that reads no input, else the number
of examples.
"""

import dataclasses
from typing import Any, ClassVar

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from prompt_tuning.core.axes import along
from prompt_tuning.core.layers import Layers, Part, Reader
from prompt_tuning.core.place import Place, joined, joined_masks, masked


@flax.struct.dataclass
class Slots(Place):
  """Vectors of virtual positions.

  Attributes:
    vectors: [R P H].
    mask: false where a position must not be attended to [R P]; None for all true.
  """

  positions: ClassVar[bool] = True
  vectors: Float[Array, "R P H"]
  mask: Bool[Array, "R P"] | None = None

  @classmethod
  def of(cls, tables_RGPH: Array, mask_RP: Array | None) -> "Slots":
    return cls(tables_RGPH[:, 0], mask_RP)

  def beside(self, other: "Slots") -> "Slots":
    vectors = joined(self.vectors, other.vectors, 1)
    return Slots(vectors, joined_masks(self.vectors, self.mask, other))


@flax.struct.dataclass
class KeysValues(Place):
  """Keys and values in each layer of a stack, J = N * D.

  Attributes:
    vectors: key and value of layer 0, of layer 1 and so on [R 2L P J].
    mask: false where such a key must not be attended to [R P]; None for all true.
    shift: how many positions they take in front of the text, where a backbone numbers
      its own (see `AtKeysValues`).
  """

  vectors: Float[Array, "R G P J"]
  mask: Bool[Array, "R P"] | None = None
  shift: int = flax.struct.field(pytree_node=False, default=0)

  @classmethod
  def of(cls, tables_RGPJ: Array, mask_RP: Array | None) -> "KeysValues":
    return cls(tables_RGPJ, mask_RP)

  def beside(self, other: "KeysValues") -> "KeysValues":
    vectors = joined(self.vectors, other.vectors, 2)
    masks = joined_masks(self.vectors, self.mask, other)
    return KeysValues(vectors, masks, self.shift + other.shift)


@flax.struct.dataclass
class Offset(Place):
  """What is added to the embeddings of a text's first P tokens [R P H]."""

  vectors: Float[Array, "R P H"]

  @classmethod
  def of(cls, tables_RGPH: Array, mask_RP: Array | None) -> "Offset":
    return cls(masked(tables_RGPH, mask_RP)[:, 0])

  def beside(self, other: "Offset") -> "Offset":
    most = max(self.vectors.shape[1], other.vectors.shape[1])
    pads = [
      jnp.pad(x, ((0, 0), (0, most - x.shape[1]), (0, 0)))
      for x in (self.vectors, other.vectors)
    ]
    return Offset(pads[0] + pads[1])


@flax.struct.dataclass
class Scale(Place):
  """Factors of an inner vector in each layer [R L J]."""

  vectors: Float[Array, "R L J"]

  @classmethod
  def of(cls, tables_RGPJ: Array, mask_RP: Array | None) -> "Scale":
    return cls(_single(cls, tables_RGPJ))

  def beside(self, other: "Scale") -> "Scale":
    return Scale(self.vectors * other.vectors)


@flax.struct.dataclass
class Shift(Place):
  """Summands of an inner vector in each layer [R L J]."""

  vectors: Float[Array, "R L J"]

  @classmethod
  def of(cls, tables_RGPJ: Array, mask_RP: Array | None) -> "Shift":
    return cls(_single(cls, tables_RGPJ))

  def beside(self, other: "Shift") -> "Shift":
    return Shift(self.vectors + other.vectors)


@flax.struct.dataclass
class LowRank(Place):
  """Changes of a kernel [I O] in each layer: sum_p left_p^T right_p.

  Attributes:
    vectors: of each layer and each of P ranks, left [I] and right [O] in one row
      [R L P I+O].
  """

  vectors: Float[Array, "R L P X"]

  @classmethod
  def of(cls, tables_RGPX: Array, mask_RP: Array | None) -> "LowRank":
    return cls(masked(tables_RGPX, mask_RP))

  def beside(self, other: "LowRank") -> "LowRank":
    return LowRank(joined(self.vectors, other.vectors, 2))


@flax.struct.dataclass
class Adapter(LowRank):
  """A bottleneck behind what a sublayer gives: y + sum_p ReLU(y . left_p) right_p.

  Attributes:
    vectors: of each layer and each of P units, left [H] and right [H] in one row
      [R L P 2H].
  """

  def beside(self, other: "Adapter") -> "Adapter":
    return Adapter(joined(self.vectors, other.vectors, 2))


KINDS = {
  "input": Slots,
  "kv": KeysValues,
  "layers": Layers,
  "offset": Offset,
  "scale": Scale,
  "shift": Shift,
  "weight": LowRank,
  "adapter": Adapter,
}


def kind_of(place: Any) -> type[Place]:
  """The record of a place.

  Raises:
    ValueError: for what is no place of any backbone.
  """
  found = KINDS.get(place.rpartition(".")[2]) if isinstance(place, str) else None
  if found is None or "." not in place:
    raise ValueError(
      f"`Prompt.site` must name a place, such as 'encoder.input' or 'decoder.kv', got "
      f"{place!r}. A place ends in one of {', '.join(KINDS)}."
    )
  return found


@dataclasses.dataclass(frozen=True)
class At:
  """A site: hands the tables of a prompt to one place of the backbone.

  Attributes:
    place: its name, one of the backbone's `Spec.places`.
    factor: multiplies what is placed; of a "weight" or an "adapter" its right factors
      alone, so that it is LoRA's alpha / r.
  """

  place: str
  factor: float = 1.0

  def __post_init__(self) -> None:
    kind_of(self.place)

  @property
  def side(self) -> str | None:
    """Whose virtual positions it uses, if it uses any."""
    return self.place.partition(".")[0] if kind_of(self.place).positions else None

  def tables(self, spec: Any) -> Any:
    """`core.context.Tables` that this site asks for.

    Raises:
      ValueError: if the backbone has no such place.
    """
    if self.place not in spec.places:
      raise ValueError(
        f"`Prompt.site` is {self.place!r}, which this backbone has not. It has "
        f"{', '.join(sorted(spec.places))}."
      )
    return spec.places[self.place]

  def __call__(self, tables_RGPJ: Array, mask_RP: Array | None, spec: Any) -> Place:
    """The record of tables [R G P width]."""
    read = self.place.startswith(f"{spec.reader}.")
    if not read and self.place.startswith("decoder.") and mask_RP is not None:
      # What only writes has a causal mask without gaps: an unused slot stays as zeros.
      tables_RGPJ, mask_RP = masked(tables_RGPJ, mask_RP), None
    if self.factor != 1.0:
      tables_RGPJ = tables_RGPJ * along(self._factors(tables_RGPJ, spec), tables_RGPJ)
    return self._record(tables_RGPJ, mask_RP, spec)

  def _record(self, tables_RGPJ: Array, mask_RP: Array | None, spec: Any) -> Place:
    return kind_of(self.place).of(tables_RGPJ, mask_RP)

  def _factors(self, tables_RGPJ: Array, spec: Any) -> Array:
    if not issubclass(kind_of(self.place), LowRank):
      return jnp.asarray(self.factor, tables_RGPJ.dtype)
    right = jnp.arange(tables_RGPJ.shape[-1]) >= spec.places[self.place].inputs
    return jnp.where(right, self.factor, 1.0)


@dataclasses.dataclass(frozen=True)
class AtLayers(At):
  """A site of the kind "layers"; see `core.layers` for what its fields do.

  Attributes:
    first: the first layer that sees the prompt, from 0; None for the middle one.
    add: add a table to the states that the layer below left, instead of replacing them.
    once: place one table in the first layer, and leave its states alone from then on.
  """

  place: str = "encoder.layers"
  first: int | None = 0
  add: bool = False
  once: bool = False

  def __post_init__(self) -> None:
    super().__post_init__()
    if kind_of(self.place) is not Layers:
      raise ValueError(
        f"`AtLayers.place` must end in .layers, got {self.place!r}. For other places "
        "use `At`."
      )
    if self.add and self.once:
      raise ValueError(
        "`AtLayers` takes `add` (a table for every layer) or `once` (one table in all),"
        " not both."
      )

  def tables(self, spec: Any) -> Any:
    """As of `At`: one table a layer from `first` on, or one in all.

    Raises:
      ValueError: also if the stack has no such layer.
    """
    asked = super().tables(spec)
    return asked._replace(count=1 if self.once else asked.count - self._first(spec))

  def read(self, reader: Reader, length: int, segments: int, spec: Any) -> Layers:
    """The record of a reader, for P = `length` positions and rows of S `segments`."""
    part = Part(reader=reader, length=length, segments=segments)
    return Layers((self._placed(part, spec),))

  def _record(self, tables_RGPJ: Array, mask_RP: Array | None, spec: Any) -> Layers:
    part = Part(tables_RGPJ, mask_RP, length=tables_RGPJ.shape[2])
    return Layers((self._placed(part, spec),))

  def _placed(self, part: Part, spec: Any) -> Part:
    return part.replace(first=self._first(spec), add=self.add, once=self.once)

  def _first(self, spec: Any) -> int:
    depth = spec.places[self.place].count
    if self.first is None:
      return depth // 2
    whole = isinstance(self.first, int) and not isinstance(self.first, bool)
    if not whole or not 0 <= self.first < depth:
      raise ValueError(
        f"`AtLayers.first` (FIRST_LAYER, LATE_LAYER) is {self.first!r}, but the layers "
        f"of {self.place} are 0 to {depth - 1} in this backbone. Name one of them, or "
        "None for the middle one."
      )
    return self.first


@dataclasses.dataclass(frozen=True)
class AtKeysValues(At):
  """A site of the kind "kv", in a backbone that numbers its positions.

  Attributes:
    shift: whether the P keys take P positions, so that the text begins behind them, as
      in P-Tuning v2 and in PEFT's prefix tuning; else the text stays where it was.
  """

  place: str = "encoder.kv"
  shift: bool = False

  def __post_init__(self) -> None:
    super().__post_init__()
    if kind_of(self.place) is not KeysValues:
      raise ValueError(
        f"`AtKeysValues.place` must end in .kv, got {self.place!r}. For other places "
        "use `At`."
      )

  def _record(self, tables_RGPJ: Array, mask_RP: Array | None, spec: Any) -> Place:
    shift = tables_RGPJ.shape[2] if self.shift else 0
    return KeysValues(tables_RGPJ, mask_RP, shift)


def site_at(site: str | At) -> At:
  """A site as a record: a name alone stands for its defaults."""
  if not isinstance(site, str):
    return site
  return AtLayers(site) if kind_of(site) is Layers else At(site)


def _single(kind: type, tables_RGPJ: Array) -> Array:
  if tables_RGPJ.shape[2] != 1:
    raise ValueError(
      f"A {kind.__name__.lower()} is one vector a layer, so `Prompt.length` must be 1 "
      f"there, got {tables_RGPJ.shape[2]}."
    )
  return tables_RGPJ[:, :, 0]

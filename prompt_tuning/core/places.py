"""Where a prompt may act: the places of a backbone, and the records they hold.

A place is a name such as "encoder.input" or "decoder.self.key.scale"; its last word
says which record stands there. A backbone lists its places in `Spec.places`, name ->
(G, width): how many tables a prompt must draw, and how wide they are.

  input    Slots       vectors at virtual positions (prompt tuning)
  kv       KeysValues  keys and values beside those of the tokens (prefix tuning)
  offset   Offset      added to the embeddings of the text, position by position (DePT)
  scale    Scale       multiplies an inner vector in every layer ((IA)3)
  shift    Shift       added to an inner vector in every layer (BitFit)
  weight   LowRank     a low-rank change of a kernel in every layer (LoRA)

A record knows how two of its kind act side by side (`beside`), and how each row picks
its own among several (`pick`). R is 1 for a prompt that reads no input, else the number
of examples.
"""

import dataclasses
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Place:
  """What all records share."""

  # Whether it stands at virtual positions, which the data must reserve.
  positions: ClassVar[bool] = False

  def pick(self, rows_B: Int[Array, " B"]) -> "Place":
    """The records of the examples of these numbers."""
    return jax.tree.map(lambda x: jnp.take(x, rows_B, axis=0), self)


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
    vectors = _joined(self.vectors, other.vectors, 1)
    return Slots(vectors, _joined_masks(self.vectors, self.mask, other))


@flax.struct.dataclass
class KeysValues(Place):
  """Keys and values in each layer of a stack, J = N * D.

  Attributes:
    vectors: key and value of layer 0, of layer 1 and so on [R 2L P J].
    mask: false where such a key must not be attended to [R P]; None for all true.
  """

  vectors: Float[Array, "R G P J"]
  mask: Bool[Array, "R P"] | None = None

  @classmethod
  def of(cls, tables_RGPJ: Array, mask_RP: Array | None) -> "KeysValues":
    return cls(tables_RGPJ, mask_RP)

  def beside(self, other: "KeysValues") -> "KeysValues":
    vectors = _joined(self.vectors, other.vectors, 2)
    return KeysValues(vectors, _joined_masks(self.vectors, self.mask, other))


@flax.struct.dataclass
class Offset(Place):
  """What is added to the embeddings of a text's first P tokens [R P H]."""

  vectors: Float[Array, "R P H"]

  @classmethod
  def of(cls, tables_RGPH: Array, mask_RP: Array | None) -> "Offset":
    return cls(_masked(tables_RGPH, mask_RP)[:, 0])

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
    return cls(_masked(tables_RGPX, mask_RP))

  def beside(self, other: "LowRank") -> "LowRank":
    return LowRank(_joined(self.vectors, other.vectors, 2))


KINDS = {
  "input": Slots,
  "kv": KeysValues,
  "offset": Offset,
  "scale": Scale,
  "shift": Shift,
  "weight": LowRank,
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
    factor: multiplies what is placed; of a "weight" its right factors alone, so that it
      is LoRA's alpha / r.
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
    if self.place.startswith("decoder.") and mask_RP is not None:
      # The decoder's causal mask has no gaps: an unused slot stays as zeros.
      tables_RGPJ, mask_RP = _masked(tables_RGPJ, mask_RP), None
    if self.factor != 1.0:
      tables_RGPJ = tables_RGPJ * self._factors(tables_RGPJ, spec)
    return kind_of(self.place).of(tables_RGPJ, mask_RP)

  def _factors(self, tables_RGPJ: Array, spec: Any) -> Array:
    if kind_of(self.place) is not LowRank:
      return jnp.asarray(self.factor, tables_RGPJ.dtype)
    right = jnp.arange(tables_RGPJ.shape[-1]) >= spec.places[self.place].inputs
    return jnp.where(right, self.factor, 1.0)


def _masked(tables_RGPJ: Array, mask_RP: Array | None) -> Array:
  if mask_RP is None:
    return tables_RGPJ
  return tables_RGPJ * mask_RP[:, None, :, None]


def _single(kind: type, tables_RGPJ: Array) -> Array:
  if tables_RGPJ.shape[2] != 1:
    raise ValueError(
      f"A {kind.__name__.lower()} is one vector a layer, so `Prompt.length` must be 1 "
      f"there, got {tables_RGPJ.shape[2]}."
    )
  return tables_RGPJ[:, :, 0]


def _joined(one: Array, other: Array, axis: int) -> Array:
  """Side by side; what reads no input stands in every example."""
  tables = one, other
  # Not max(): an exported program cannot compare its B with 1.
  R = next((table.shape[0] for table in tables if table.shape[0] != 1), 1)
  rows = [jnp.broadcast_to(table, (R, *table.shape[1:])) for table in tables]
  return jnp.concatenate(rows, axis=axis)


def _joined_masks(vectors: Array, mask: Array | None, other: Any) -> Array | None:
  if mask is None and other.mask is None:
    return None
  masks = [
    jnp.ones((x.shape[0], x.shape[-2]), bool) if own is None else own
    for x, own in ((vectors, mask), (other.vectors, other.mask))
  ]
  return _joined(*masks, 1)

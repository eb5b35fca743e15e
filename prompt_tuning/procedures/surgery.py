"""Where the parameters of a phase come from: expressions over earlier products.

A start is a mapping "path of a branch <- expression". A branch of a product is written
"PHASE:PATH", such as "source:prompt", or "FOLDER:PATH" for the product of another run,
such as "runs/source/prompt:prompt/parameterise". A path may name a leaf or a branch:
what is done to a branch is done to each of its leaves.

Expressions take texts and other expressions. They say what they read (`reads`) and what
becomes of it (`__call__`), on arrays or on shapes, so that the engine can refuse what
does not fit before it reads a number.
"""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

# An array, or a branch of arrays.
Tree = Any
# In place of a path: the fixed vectors [1 P H] in front of the encoder's input that do
# what a product's prompt does.
FOLDED = "=folded"


class Expression(abc.ABC):
  """Trees of earlier products -> a tree."""

  @abc.abstractmethod
  def parts(self) -> Sequence["str | Expression"]:
    """What it is made of, in order."""

  @abc.abstractmethod
  def made(self, trees: Sequence[Tree]) -> Tree:
    """What it makes of its parts."""


def reads(expression: str | Expression) -> tuple[str, ...]:
  """The branches that an expression reads, each once, in order."""
  if isinstance(expression, str):
    return (expression,)
  found = [name for part in expression.parts() for name in reads(part)]
  return tuple(dict.fromkeys(found))


def evaluated(expression: str | Expression, held: Mapping[str, Tree]) -> Tree:
  """The value of an expression.

  Args:
    held: what stands at each of `reads(expression)`.
  """
  if isinstance(expression, str):
    return held[expression]
  return expression.made([evaluated(part, held) for part in expression.parts()])


def place(reference: str) -> tuple[str, str]:
  """("PHASE" or "FOLDER", "PATH") of a reference."""
  owner, _, path = reference.rpartition(":")
  return owner, path


def checked(where: str, start: Any) -> dict[str, str | Expression]:
  """A start whose parts are texts and expressions.

  Raises:
    ValueError: naming what is none, with what fits.
  """
  if not isinstance(start, Mapping):
    raise ValueError(
      f"`{where}` is {start!r}; it must be a mapping such as "
      '{"prompt": "source:prompt"}.'
    )
  for target, expression in start.items():
    if not isinstance(target, str) or not isinstance(expression, (str, Expression)):
      raise ValueError(
        f"`{where}` maps {target!r} to {expression!r}; it must map the path of a "
        'branch to "PHASE:PATH", "FOLDER:PATH" or an expression of `surgery`.'
      )
    for one in reads(expression):
      if not all(place(one)):
        raise ValueError(
          f"`{where}` reads {one!r} for {target!r}; a branch is written "
          '"PHASE:PATH", such as "source:prompt", or "FOLDER:PATH".'
        )
  return dict(start)


@dataclasses.dataclass(frozen=True)
class Copy(Expression):
  """The same; a text alone says so too."""

  of: str | Expression

  def parts(self) -> Sequence[str | Expression]:
    return (self.of,)

  def made(self, trees: Sequence[Tree]) -> Tree:
    return trees[0]


@dataclasses.dataclass(frozen=True)
class Weighted(Expression):
  """sum_k weights[k] of[k]."""

  of: Sequence[str | Expression]
  weights: Sequence[float]

  def __post_init__(self) -> None:
    _several("Weighted", self.of)
    if len(self.weights) != len(self.of):
      raise ValueError(
        f"`Weighted.weights` holds {len(self.weights)} numbers for {len(self.of)} "
        "branches. Give one each."
      )

  def parts(self) -> Sequence[str | Expression]:
    return tuple(self.of)

  def made(self, trees: Sequence[Tree]) -> Tree:
    def added(*leaves: Any) -> Any:
      return sum(w * leaf for w, leaf in zip(self.weights, leaves, strict=True))

    return _together(added, trees, "Weighted")


@dataclasses.dataclass(frozen=True)
class Mean(Expression):
  """The mean of several branches of one shape."""

  of: Sequence[str | Expression]

  def __post_init__(self) -> None:
    _several("Mean", self.of)

  def parts(self) -> Sequence[str | Expression]:
    return tuple(self.of)

  def made(self, trees: Sequence[Tree]) -> Tree:
    return _together(lambda *leaves: sum(leaves) / len(leaves), trees, "Mean")


@dataclasses.dataclass(frozen=True)
class MeanOver(Expression):
  """The mean along an axis, which is gone then.

  Attributes:
    axis: of the leaves; 0 for the tasks of factors [K G P R].
  """

  of: str | Expression
  axis: int

  def parts(self) -> Sequence[str | Expression]:
    return (self.of,)

  def made(self, trees: Sequence[Tree]) -> Tree:
    return jax.tree.map(lambda leaf: leaf.mean(self.axis), trees[0])


@dataclasses.dataclass(frozen=True)
class Balanced(Expression):
  """A factor of left [... P R] @ right [... R H], rescaled; the product stays.

  Every column of `left` has a root mean square of 1 then, and the rows of `right` take
  over its scale. Columns of zeros stay as they are.

  Attributes:
    side: "left" or "right".
  """

  left: str | Expression
  right: str | Expression
  side: str

  def __post_init__(self) -> None:
    _sided("Balanced", self.side)

  def parts(self) -> Sequence[str | Expression]:
    return (self.left, self.right)

  def made(self, trees: Sequence[Tree]) -> Tree:
    left, right = trees
    size = jnp.sqrt(jnp.square(left).mean(-2, keepdims=True))
    size = jnp.where(size > 0, size, 1.0)
    return left / size if self.side == "left" else right * jnp.swapaxes(size, -1, -2)


@dataclasses.dataclass(frozen=True)
class Concat(Expression):
  """Several branches one behind the other.

  Attributes:
    axis: of the leaves; -2 for positions of a table [... P H].
  """

  of: Sequence[str | Expression]
  axis: int = -2

  def __post_init__(self) -> None:
    _several("Concat", self.of)

  def parts(self) -> Sequence[str | Expression]:
    return tuple(self.of)

  def made(self, trees: Sequence[Tree]) -> Tree:
    def joined(*leaves: Any) -> Any:
      return jnp.concatenate(leaves, axis=self.axis)

    return _together(joined, trees, "Concat")


@dataclasses.dataclass(frozen=True)
class Take(Expression):
  """Some rows, in the order given.

  Attributes:
    rows: their numbers from 0. axis: -2 for positions of a table [... P H].
  """

  of: str | Expression
  rows: Sequence[int]
  axis: int = -2

  def parts(self) -> Sequence[str | Expression]:
    return (self.of,)

  def made(self, trees: Sequence[Tree]) -> Tree:
    def taken(leaf: Any) -> Any:
      count = leaf.shape[self.axis]
      outside = [row for row in self.rows if not 0 <= row < count]
      if outside:
        raise ValueError(f"`Take.rows` holds {outside[0]}, but there are {count} rows.")
      return jnp.take(leaf, jnp.asarray(tuple(self.rows), jnp.int32), axis=self.axis)

    return jax.tree.map(taken, trees[0])


@dataclasses.dataclass(frozen=True)
class Tile(Expression):
  """`count` copies along a new first axis: [...] -> [count ...]."""

  of: str | Expression
  count: int

  def parts(self) -> Sequence[str | Expression]:
    return (self.of,)

  def made(self, trees: Sequence[Tree]) -> Tree:
    def tiled(leaf: Any) -> Any:
      return jnp.broadcast_to(leaf, (self.count, *leaf.shape))

    return jax.tree.map(tiled, trees[0])


@dataclasses.dataclass(frozen=True)
class Fold(Expression):
  """The fixed vectors [1 P H] that do what a whole prompt does.

  Attributes:
    of: a phase, or the folder of a product; its prompt must not read its input.
  """

  of: str

  def parts(self) -> Sequence[str | Expression]:
    return (f"{self.of}:{FOLDED}",)

  def made(self, trees: Sequence[Tree]) -> Tree:
    return trees[0]


@dataclasses.dataclass(frozen=True)
class Svd(Expression):
  """A factor of the best approximation of rank r: left @ right, both scaled alike.

  left [... P r] = U sqrt(s), right [... r H] = sqrt(s) V^T, of a table [... P H].

  Attributes:
    rank: r. side: "left" or "right".
  """

  of: str | Expression
  rank: int
  side: str

  def __post_init__(self) -> None:
    _sided("Svd", self.side)

  def parts(self) -> Sequence[str | Expression]:
    return (self.of,)

  def made(self, trees: Sequence[Tree]) -> Tree:
    def factor(leaf: Any) -> Any:
      most = min(leaf.shape[-2:])
      if not 1 <= self.rank <= most:
        raise ValueError(f"`Svd.rank` is {self.rank}; it must be from 1 to {most}.")
      left, scale, right = jnp.linalg.svd(leaf, full_matrices=False)
      # Signs are free: the largest entry of each right vector is positive.
      peak = jnp.argmax(jnp.abs(right), -1, keepdims=True)
      sign = jnp.sign(jnp.take_along_axis(right, peak, -1))
      root = jnp.sqrt(scale)[..., None]
      if self.side == "right":
        return (right * sign * root)[..., : self.rank, :]
      return (left * jnp.swapaxes(sign * root, -1, -2))[..., : self.rank]

    return jax.tree.map(factor, trees[0])


@dataclasses.dataclass(frozen=True)
class Masked(Expression):
  """A table [... P H] whose masked pieces are zero.

  Attributes:
    mask: [P K] of zeros and ones; K pieces a row, each of H / K numbers.
  """

  of: str | Expression
  mask: str | Expression

  def parts(self) -> Sequence[str | Expression]:
    return (self.of, self.mask)

  def made(self, trees: Sequence[Tree]) -> Tree:
    table, mask_PK = trees
    P, K = mask_PK.shape
    if table.shape[-2] != P or table.shape[-1] % K:
      raise ValueError(
        f"`Masked.mask` is {mask_PK.shape} for a table {table.shape}; it must be "
        f"({table.shape[-2]}, K) with K a divisor of {table.shape[-1]}."
      )
    repeated_PH = jnp.repeat(mask_PK, table.shape[-1] // K, axis=1)
    return table * repeated_PH.reshape((1,) * (table.ndim - 2) + repeated_PH.shape)


@dataclasses.dataclass(frozen=True)
class Given(Expression):
  """Numbers that a procedure computed, such as a mask."""

  value: Any

  def parts(self) -> Sequence[str | Expression]:
    return ()

  def made(self, trees: Sequence[Tree]) -> Tree:
    return jnp.asarray(self.value, jnp.float32)


@dataclasses.dataclass(frozen=True)
class Fresh(Expression):
  """What its own initialiser draws: the same as not naming it."""

  def parts(self) -> Sequence[str | Expression]:
    return ()

  def made(self, trees: Sequence[Tree]) -> Tree:
    return None


def _sided(name: str, side: str) -> None:
  if side not in ("left", "right"):
    raise ValueError(f"`{name}.side` is {side!r}; it must be 'left' or 'right'.")


def _several(name: str, of: Any) -> None:
  if isinstance(of, str) or not isinstance(of, Sequence) or not of:
    raise ValueError(f"`{name}.of` is {of!r}; it must be a list of branches.")


def _together(function: Any, trees: Sequence[Tree], name: str) -> Tree:
  shapes = [jax.tree.structure(tree) for tree in trees]
  if any(shape != shapes[0] for shape in shapes):
    raise ValueError(f"`{name}.of` names branches of different parts.")
  return jax.tree.map(function, *trees)

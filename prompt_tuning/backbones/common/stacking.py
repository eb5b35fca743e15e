"""The two forms of a stack's weights: `layers_0`, `layers_1` ... and stacked `layers`.

Checkpoints hold the first; a config with `scan_layers` wants the second.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning.backbones.common import int8
from prompt_tuning.core.trainable import flatten

Params = Any
# Branches that may hold one.
STACKS = ("encoder", "decoder")


def stack_layers(params: Params, depths: Mapping[str, int], named: str) -> Params:
  """Puts the layers of each stack into one branch, the layer axis in front.

  Args:
    params: weights of an unrolled backbone. A stack that is stacked already is kept.
    depths: how many layers each stack must have, by the name of its branch.
    named: what a field of the config that says so is called, with "{}" for the stack.

  Returns:
    A tree with `STACK/layers/...`, each array [L ...]; NumPy
    arrays stay NumPy arrays, so that nothing is put on a device.

  Raises:
    ValueError: the layers found are not those that `depths` asks for.
  """
  stacked = dict(params)
  for side, depth in depths.items():
    layers, rest = _split(params[side])
    if not layers and "layers" in rest:
      layers, rest = _split(_unstack(rest))
    if sorted(layers) != list(range(depth)):
      raise ValueError(
        f"`params` must hold `{side}/layers_0` to `{side}/layers_{depth - 1}` for "
        f"`{named.format(side)}` = {depth}, got layers {sorted(layers)}. Load "
        "weights of this architecture or bind the config of the backbone they are of."
      )
    in_order = [layers[i] for i in range(depth)]
    stacked[side] = {**rest, "layers": jax.tree.map(_stack, *in_order)}
  return stacked


def unstack_layers(params: Params) -> Params:
  """The inverse of `stack_layers`: `layers` [L ...] becomes `layers_0` to `layers_L-1`.

  A stack that is unrolled already is kept.
  """
  return {
    name: _unstack(branch) if name in STACKS else branch
    for name, branch in params.items()
  }


@dataclasses.dataclass(frozen=True)
class Leaf:
  """An array of an unrolled backbone that may still lie in its stack.

  Attributes:
    held: the array, or the stack of it. layer: its place there, None for no stack.
  """

  held: Any
  layer: int | None = None

  @property
  def shape(self) -> tuple[int, ...]:
    return self.held.shape if self.layer is None else self.held.shape[1:]

  @property
  def dtype(self) -> Any:
    return self.held.dtype

  def read(self) -> Any:
    """The array itself; only now it is cut out."""
    return self.held if self.layer is None else self.held[self.layer]


def unrolled(params: Params) -> dict[str, Leaf]:
  """Unrolled name -> array, as `unstack_layers` names them; nothing is copied.

  Raises:
    ValueError: for weights held as int8.
  """
  int8.refuse(params, "This")
  found = {}
  for name, value in flatten(params).items():
    side, _, rest = name.partition("/layers/")
    if rest and side in STACKS:
      layers = range(value.shape[0])
      found |= {f"{side}/layers_{i}/{rest}": Leaf(value, i) for i in layers}
    else:
      found[name] = Leaf(value)
  return dict(sorted(found.items()))


def _split(branch: Params) -> tuple[dict[int, Params], Params]:
  """The numbered layers of a stack, and everything else in it."""
  layers, rest = {}, {}
  for name, value in branch.items():
    number = name.removeprefix("layers_")
    if name != number and number.isdigit():
      layers[int(number)] = value
    else:
      rest[name] = value
  return layers, rest


def _unstack(branch: Params) -> Params:
  rest = dict(branch)
  layers = rest.pop("layers", None)
  if layers is None:
    return rest
  depth = jax.tree.leaves(layers)[0].shape[0]
  for i in range(depth):
    rest[f"layers_{i}"] = jax.tree.map(lambda leaf, i=i: leaf[i], layers)
  return rest


def _stack(*leaves: Any) -> Any:
  xp = np if all(isinstance(leaf, np.ndarray) for leaf in leaves) else jnp
  return xp.stack(leaves)

"""What happens inside of a T5, layer by layer, for objectives that compare it.

STACK.states   behind each layer, before the stack's last norm [L B X H]
STACK.hidden   what each feed-forward's second matrix reads [L B X F]
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

_WITHIN = {"states": ("states",), "hidden": ("mlp", "hidden")}
TRACES = tuple(
  f"{stack}.{kind}" for stack in ("encoder", "decoder") for kind in _WITHIN
)


def kept(sown: Any) -> dict[str, Array]:
  """Name -> values of all layers, of what a pass of the network sowed."""
  return {
    f"{stack}.{kind}": _by_layer(branch, path)
    for stack, branch in sown.get("trace", {}).items()
    for kind, path in _WITHIN.items()
  }


def _by_layer(branch: Any, path: Sequence[str]) -> Array:
  def at(layer: Any) -> Array:
    for name in path:
      layer = layer[name]
    return layer[0]

  if "layers" in branch:
    return at(branch["layers"])
  return jnp.stack([at(branch[f"layers_{i}"]) for i in range(len(branch))])

"""The walk of a stack's layers, unrolled or scanned, and what is recomputed behind it.

A config has `scan_layers` and `remat_policy`; layers are modules of (config, train).
"""

from typing import Any

import flax.linen as nn
import jax
from flax.linen import partitioning


def layer_modules(cls: type[nn.Module], config: Any, count: int, train: bool) -> Any:
  """The blocks of a stack: a list, or one module whose parameters are scanned over."""
  if config.remat_policy != "none":
    policies = jax.checkpoint_policies
    dots = policies.dots_with_no_batch_dims_saveable
    cls = nn.remat(
      cls,
      policy=dots if config.remat_policy == "dots" else policies.nothing_saveable,
      prevent_cse=not config.scan_layers,
    )
  if config.scan_layers:
    return cls(config, train)
  return [cls(config, train) for _ in range(count)]


class Walk(nn.Module):
  """A stack of `depth` layers; `layers` is what `layer_modules` makes of them."""

  config: Any
  train: bool = False

  def walk(self, block: Any, x: Any, per_layer: Any, *shared: Any) -> tuple[Any, Any]:
    """Runs `block(layer, x, entry, *shared)` -> (x, output) through the layers.

    Entries and outputs are one a layer: lists, or arrays with a leading layer axis
    where layers are scanned.
    """
    if self.config.scan_layers:
      return self._scan(block, len(shared))(self.layers, x, per_layer, *shared)
    outputs = []
    for i, layer in enumerate(self.layers):
      own = tuple(_at(part, i) for part in per_layer)
      x, output = block(layer, x, own, *shared)
      outputs.append(output)
    return x, outputs

  def _scan(self, block: Any, shared: int) -> Any:
    # Parameters get a leading axis, which `params_axes` records as "layers".
    return partitioning.scan_with_axes(
      block,
      variable_axes={"params": 0, "trace": 0},
      split_rngs={"params": True, "dropout": True},
      in_axes=(0, *[nn.broadcast] * shared),
      length=self.depth,
      axis_name="layers",
    )


def _at(part: Any, layer: int) -> Any:
  """One layer's entry of a list, or of arrays with a leading layer axis."""
  if part is None or isinstance(part, list):
    return part and part[layer]
  return jax.tree.map(lambda x: x[layer], part)

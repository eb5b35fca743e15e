"""The spellings of T5X's trees of a T5, brought to the one that is used here.

The minimal network and Flaxformer name layers `layers_0`, `layers_1` ... and merge the
heads of a kernel. T5X's scalable network stacks the layers along axis 1, below
`encoder/encoder` (or `encoder/layers`), keeps heads apart, and has a table of position
biases in each layer; these must all be the same here, where a stack shares one.
"""

import re
from collections.abc import Mapping

import numpy as np

from prompt_tuning.interop.lazy import Lazy, UnreadableError, picked, reshaped

# Names of the backbone's own branches; what else is under `target/` is a prompt.
OWN = re.compile(
  r"token_embedder/embedding|decoder/logits_dense/kernel|"
  r"(encoder|decoder)/(relpos_bias/rel_embedding|\w+_norm/scale|"
  r"layers_\d+/(\w*attention/(query|key|value|out)|mlp/(wi|wi_0|wi_1|wo))/kernel|"
  r"layers_\d+/pre_\w+_layer_norm/scale)"
)
_STACK = re.compile(r"(encoder|decoder)/(?:encoder|decoder|layers)/(.+)")
_TABLE = re.compile(
  r"(encoder|decoder)/layers_\d+/(?:relpos_bias|relative_posemb)/rel_embedding"
)
_LAYER_AXIS = 1
_MOST_LAYERS = 1000


def plain(arrays: Mapping[str, Lazy], where: str) -> dict[str, Lazy]:
  """Names of the minimal network, whichever network wrote them.

  Args:
    arrays: name below `target/` -> array. where: for errors.

  Raises:
    UnreadableError: if layers have position biases of their own (umT5), or if stacked
      arrays do not fit each other.
  """
  found: dict[str, Lazy] = {}
  tables: dict[str, list[Lazy]] = {}
  for name, lazy in _unstacked(arrays, where).items():
    table = _TABLE.fullmatch(name)
    if table:
      tables.setdefault(table.group(1), []).append(lazy)
    else:
      found[name] = _merged(lazy, name)
  for side, layers in tables.items():
    found[f"{side}/relpos_bias/rel_embedding"] = _shared(layers, side, where)
  return found


def _unstacked(arrays: Mapping[str, Lazy], where: str) -> dict[str, Lazy]:
  found, depths = {}, {}
  for name, lazy in arrays.items():
    stack = _STACK.fullmatch(name)
    if stack is None:
      found[name] = lazy
      continue
    side, rest = stack.groups()
    if len(lazy.shape) <= _LAYER_AXIS:
      raise UnreadableError(f"{where!r}: {name} {lazy.shape} has no axis of layers.")
    depth = depths.setdefault(side, lazy.shape[_LAYER_AXIS])
    if depth != lazy.shape[_LAYER_AXIS] or depth > _MOST_LAYERS:
      raise UnreadableError(
        f"{where!r}: {name} {lazy.shape} does not hold the {depth} layers of others."
      )
    for layer in range(depth):
      found[f"{side}/layers_{layer}/{rest}"] = picked(lazy, _LAYER_AXIS, layer)
  return found


def _merged(lazy: Lazy, name: str) -> Lazy:
  """Heads and their width as one axis: [d h k] -> [d h*k], and [h k d] -> [h*k d]."""
  kernel = re.fullmatch(r".*attention/(query|key|value|out)/kernel", name)
  if kernel is None or len(lazy.shape) != 3:
    return lazy
  first, middle, last = lazy.shape
  out = kernel.group(1) == "out"
  return reshaped(lazy, (first * middle, last) if out else (first, middle * last))


def _shared(layers: list[Lazy], side: str, where: str) -> Lazy:
  first = layers[0].read()
  if not all(np.array_equal(first, layer.read()) for layer in layers[1:]):
    raise UnreadableError(
      f"{where!r}: each of the {len(layers)} layers of the {side} has position biases "
      "of its own (as in umT5); here a stack shares one table, so the model cannot be "
      "computed."
    )
  return layers[0]

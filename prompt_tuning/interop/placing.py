"""Arrays of files into the tree of a backbone, each read once, into its place."""

import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from prompt_tuning.backbones.common import int8
from prompt_tuning.core.trainable import flatten, unflatten
from prompt_tuning.interop.finite import only_finite
from prompt_tuning.interop.lazy import Index, Lazy, UnreadableError, stacked

Shardings = Mapping[str, jax.sharding.Sharding]
_SCANNED = re.compile(r"(\w+)/layers/(.+)")
_FIRST_LAYER = re.compile(r"(\w+)/layers_0/(.+)")
# What weights may be stored as; all but the last are kept as they are.
_FLOATS = ("float32", "bfloat16", "float16")


def load(
  arrays: Mapping[str, Lazy],
  where: Any,
  backbone: Any,
  shardings: Shardings | Callable[[Any], Shardings] | None = None,
  dtype: Any = None,
) -> Any:
  """The weights of a backbone.

  The host holds what it keeps and, at most, one array more: layers are stacked and
  numbers cast while they are read, large arrays first.

  Args:
    arrays: unrolled name -> array, all that the backbone has. where: they lie.
    backbone: whose they are, with its switches.
    shardings: name in the backbone's own tree -> where the array shall live, or a
      function of the backbone that gives them. Names left out, and all for None, go to
      the default device.
    dtype: to keep the weights in; None keeps the stored one, but for float16, which is
      widened.

  Raises:
    ValueError: for weights that are no finite floating-point numbers, or shardings of
      no weights.
  """
  _check_types(arrays, where, dtype)
  arrays = {name: only_finite(lazy, name, where) for name, lazy in arrays.items()}
  if backbone.switches["scan_layers"]:
    arrays = _in_tree(arrays)
  places = shardings(backbone) if callable(shardings) else shardings or {}
  unknown = sorted(set(places) - set(arrays))
  if unknown:
    raise ValueError(
      f"`shardings` names no weights of this backbone: {', '.join(unknown[:8])}."
    )
  found = {}
  # Memory that a reader needs for a while is largest when the least is kept.
  for name in sorted(arrays, key=lambda name: -_bytes(arrays[name])):
    if dtype == "int8" and int8.is_matrix(name):
      found[name] = _quantised(name, arrays[name], places.get(name))
      continue
    kept = None if dtype == "int8" else dtype
    found[name] = _placed(arrays[name], places.get(name), kept)
  return unflatten({name: found[name] for name in arrays})


def unrolled_shapes(backbone: Any) -> dict[str, jax.ShapeDtypeStruct]:
  """Unrolled name -> shape; layers are traced once, however many there are."""
  found = {}
  for name, leaf in flatten(backbone.recast(scan_layers=True).shapes()).items():
    match = _SCANNED.fullmatch(name)
    if match is None:
      found[name] = leaf
      continue
    for layer in range(leaf.shape[0]):
      one = jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
      found[f"{match.group(1)}/layers_{layer}/{match.group(2)}"] = one
  return found


def _in_tree(arrays: Mapping[str, Lazy]) -> dict[str, Lazy]:
  """Arrays under the names of a tree whose layers are stacked."""
  found = {}
  for name, lazy in arrays.items():
    layer = _FIRST_LAYER.fullmatch(name)
    if layer:
      side, rest = layer.groups()
      names = (f"{side}/layers_{i}/{rest}" for i in itertools.count())
      layers = [arrays[one] for one in itertools.takewhile(arrays.__contains__, names)]
      found[f"{side}/layers/{rest}"] = stacked(layers)
    elif "/layers_" not in name:
      found[name] = lazy
  return found


def _check_types(arrays: Mapping[str, Lazy], where: Any, dtype: Any) -> None:
  known = _FLOATS if dtype is None else (*_FLOATS, "float64")
  wrong = [
    f"{name} {lazy.dtype}"
    for name, lazy in sorted(arrays.items())
    if lazy.dtype.name not in known
  ]
  if wrong:
    raise UnreadableError(
      f"{str(where)!r} holds weights that are not {', '.join(known)}: "
      f"{', '.join(wrong[:8])}. Quantised weights cannot be read; float64 can, if you "
      "say which `dtype` to round them to."
    )


def _bytes(lazy: Lazy) -> int:
  return int(np.prod(lazy.shape, dtype=np.int64)) * lazy.dtype.itemsize


def _placed(lazy: Lazy, sharding: jax.sharding.Sharding | None, dtype: Any) -> Any:
  if dtype is None:
    dtype = np.float32 if lazy.dtype == np.float16 else lazy.dtype
  if sharding is None:
    return jax.block_until_ready(jax.device_put(lazy.read(dtype=dtype)))
  pieces: dict[tuple[tuple[int | None, int | None], ...], np.ndarray] = {}

  def piece(index: Index) -> np.ndarray:
    # Devices that hold copies of one slice share its reading.
    key = tuple((part.start, part.stop) for part in index)
    if key not in pieces:
      pieces[key] = lazy.read(index, dtype)
    return pieces[key]

  return jax.block_until_ready(
    jax.make_array_from_callback(lazy.shape, sharding, piece, np.dtype(dtype))
  )


def _quantised(
  name: str, lazy: Lazy, sharding: jax.sharding.Sharding | None
) -> int8.Quantised:
  def layer(number: int | None) -> np.ndarray:
    first = slice(None) if number is None else slice(number, number + 1)
    return lazy.read((first, *[slice(None)] * (len(lazy.shape) - 1)), np.float32)

  found = int8.read(name, lazy.shape, layer)
  if sharding is None:
    return jax.block_until_ready(jax.device_put(found))
  # One scale serves a whole axis, which cannot be divided.
  sizes = found.scale.shape
  spec = [*sharding.spec, *[None] * (len(lazy.shape) - len(sharding.spec))]
  spec = [axis if size > 1 else None for axis, size in zip(spec, sizes, strict=True)]
  whole = jax.sharding.PartitionSpec(*spec)
  places = int8.Quantised(sharding, type(sharding)(sharding.mesh, whole))
  return jax.block_until_ready(
    jax.tree.map(
      lambda x, place: jax.make_array_from_callback(x.shape, place, x.__getitem__),
      found,
      places,
    )
  )

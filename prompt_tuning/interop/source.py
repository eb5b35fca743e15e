"""A backbone on disk, whatever its format: names, shapes, and lazy reading."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from prompt_tuning.backbones.common import int8, stored
from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.backbones.t5.config import T5Config
from prompt_tuning.core.context import Spec
from prompt_tuning.core.trainable import flatten, unflatten
from prompt_tuning.interop.finite import only_finite
from prompt_tuning.interop.lazy import Index, Lazy, UnreadableError, stacked

Shardings = Mapping[str, jax.sharding.Sharding]
_SCANNED = re.compile(r"(encoder|decoder)/layers/(.+)")
_FIRST_LAYER = re.compile(r"(encoder|decoder)/layers_0/(.+)")
# No axis of a T5 is longer.
_LARGEST = 1 << 31
# What weights may be stored as; all but the last are kept as they are.
_FLOATS = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Source:
  """Attributes:
  path: what the user gave. config: the architecture, read from the files.
  arrays: name in the backbone's own tree (no `target/`) -> array, layers unrolled.
  prompts: name -> array of what is no part of the backbone, such as a trained prompt.
  vocabulary: "bytes", a SentencePiece file or tokenizer.json, or None where none lies
    beside the weights.
  step: training step of the checkpoint, if it says.
  family: the class of backbones that a config makes.
  """

  path: Any
  config: Any
  arrays: Mapping[str, Lazy]
  prompts: Mapping[str, Lazy] = dataclasses.field(default_factory=dict)
  vocabulary: str | None = None
  step: int | None = None
  family: Callable[[Any], Any] = T5

  @property
  def backbone(self) -> Any:
    """The backbone that it holds."""
    return self.family(self.config)

  @property
  def spec(self) -> Spec:
    """Of the backbone that it holds."""
    return self.backbone.spec


def load(
  source: Source,
  expected: Any = None,
  shardings: Shardings | Callable[[Any], Shardings] | None = None,
  dtype: Any = None,
) -> tuple[Any, Any]:
  """(backbone, weights); each array is read once, straight into its place.

  The host holds what it keeps and, at most, one array more: layers are stacked, kernels
  transposed and numbers cast while they are read, large arrays first.

  Args:
    source: where from.
    expected: architecture bound elsewhere, which must be the source's; its switches
      (dropout, dtypes, scan, remat) apply.
    shardings: name in the backbone's own tree (`encoder/layers/...` where layers are
      scanned) -> where the array shall live, or a function of the backbone that gives
      them. Each process then reads the slices of its own devices. Names left out, and
      all for None, go to the default device.
    dtype: to keep the weights in, such as "bfloat16", which rounds to 8 bits, or
      "int8", which rounds matrices (`int8.Quantised`) and keeps the rest; None for
      the switch `weights_dtype` of `expected`. Where that is None too, the stored ones
      are kept, but for float16, which T5 1.1 overflows in and which is widened to
      float32.

  Raises:
    ValueError: if the architecture differs, or if weights are missing, unknown, of
      another shape, or no finite floating-point numbers (all are named).
  """
  backbone = stored.fitting(source.backbone, expected, str(source.path))
  if dtype is not None:
    dtype = backbone.recast(weights_dtype=dtype).switches["weights_dtype"]
  else:
    dtype = backbone.switches["weights_dtype"]
  shapes = _shapes(source.backbone)
  stored.check_names(shapes, dict(source.arrays), str(source.path))
  _check_types(source, dtype)
  checked = {n: only_finite(lazy, n, source.path) for n, lazy in source.arrays.items()}
  arrays = _in_tree(dataclasses.replace(source, arrays=checked), backbone.config)
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
  return backbone, unflatten({name: found[name] for name in arrays})


def _in_tree(source: Source, config: Any) -> dict[str, Lazy]:
  """Arrays under the names of the backbone's own tree."""
  if not config.scan_layers:
    return dict(source.arrays)
  found = {}
  for name, lazy in source.arrays.items():
    layer = _FIRST_LAYER.fullmatch(name)
    if layer:
      side, rest = layer.groups()
      depth = getattr(config, f"num_{side}_layers")
      layers = [source.arrays[f"{side}/layers_{i}/{rest}"] for i in range(depth)]
      found[f"{side}/layers/{rest}"] = stacked(layers)
    elif "/layers_" not in name:
      found[name] = lazy
  return found


@functools.lru_cache(maxsize=8)
def _shapes(backbone: Any) -> dict[str, jax.ShapeDtypeStruct]:
  """Unrolled name -> shape; scanned layers are traced once, however many there are.

  Args:
    backbone: as files state it, without switches.
  """
  found = {}
  scanned = backbone.recast(scan_layers=True)
  for name, leaf in flatten(scanned.shapes()).items():
    match = _SCANNED.fullmatch(name)
    if match is None:
      found[name] = leaf
      continue
    for layer in range(leaf.shape[0]):
      one = jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
      found[f"{match.group(1)}/layers_{layer}/{match.group(2)}"] = one
  return found


def _check_types(source: Source, dtype: Any) -> None:
  known = _FLOATS if dtype is None else (*_FLOATS, "float64")
  wrong = [
    f"{name} {lazy.dtype}"
    for name, lazy in sorted(source.arrays.items())
    if lazy.dtype.name not in known
  ]
  if wrong:
    raise UnreadableError(
      f"{str(source.path)!r} holds weights that are not {', '.join(known)}: "
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


def config_of(
  shapes: Mapping[str, tuple[int, ...]], where: str, max_distance: int = 128
) -> T5Config:
  """The architecture that the shapes of T5X-named arrays imply.

  Raises:
    UnreadableError: naming the first array that it takes and that is missing.
  """

  def shape(name: str, rank: int = 2) -> tuple[int, ...]:
    found = shapes.get(name)
    if found is None or len(found) != rank:
      raise UnreadableError(
        f"{where!r} is no T5: {name} is "
        f"{'missing' if found is None else f'of shape {found}'}. Known are T5 1.0, "
        "1.1, mT5, Flan and ByT5, with an encoder and a decoder."
      )
    return found

  vocab_size, emb_dim = shape("token_embedder/embedding")
  num_heads, buckets = shape("encoder/relpos_bias/rel_embedding")
  gated = "encoder/layers_0/mlp/wi_0/kernel" in shapes
  mlp = shape(f"encoder/layers_0/mlp/{'wi_0' if gated else 'wi'}/kernel")
  joined = shape("encoder/layers_0/attention/query/kernel")[1]
  if num_heads < 1 or joined % num_heads:
    raise UnreadableError(
      f"{where!r} is no T5: {num_heads} heads do not divide a projection of {joined}."
    )

  def depth(side: str) -> int:
    start = f"{side}/layers_"
    names = {n.removeprefix(start).split("/")[0] for n in shapes if n.startswith(start)}
    return len(names)

  if type(max_distance) is not int or max(vocab_size, *mlp, buckets) > _LARGEST:
    raise UnreadableError(
      f"{where!r} is no T5: a table [{vocab_size} {emb_dim}], a kernel {mlp}, "
      f"{buckets} buckets up to a distance of {max_distance!r}."
    )
  try:
    return T5Config(
      vocab_size=vocab_size,
      emb_dim=emb_dim,
      num_heads=num_heads,
      head_dim=joined // num_heads,
      mlp_dim=mlp[1],
      num_encoder_layers=depth("encoder"),
      num_decoder_layers=depth("decoder"),
      mlp_activations=("gelu", "linear") if gated else ("relu",),
      logits_via_embedding="decoder/logits_dense/kernel" not in shapes,
      relative_buckets=buckets,
      relative_max_distance=max_distance,
    )
  except ValueError as error:
    raise UnreadableError(f"{where!r} is no T5: {error}") from error

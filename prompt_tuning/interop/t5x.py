"""T5X checkpoints, legacy (msgpack and zarr) and Orbax, read and written.

Only what stands under `target/` is read; the optimiser's state is left where it is.
Both formats keep float32 and bfloat16 bit for bit. What a checkpoint says of drivers
and folders is of the machine that wrote it, and is not followed.
"""

import pathlib
import re
import tempfile
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import msgpack
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.backbones.t5.stacking import unrolled
from prompt_tuning.core.folders import listed_beside, whole_folder
from prompt_tuning.core.trainable import unflatten
from prompt_tuning.interop import msgpack_places, places, stores, t5x_names, untrusted
from prompt_tuning.interop.lazy import (
  Lazy,
  UnreadableError,
  in_file,
  joined,
  open_bytes,
  viewed,
)
from prompt_tuning.interop.source import Source, config_of

STEP = re.compile(r"checkpoint_(\d+)")
VERSION = 3
_CHUNKED = "__msgpack_chunked_array__"
# Extension types of Flax: arrays, and numpy scalars, which are arrays of no axes.
_ARRAYS = (1, 3)


def find(path: Any) -> Any:
  """The step's folder that a path means, or None if it is no T5X checkpoint.

  Takes the model's folder (its largest step), `checkpoint_<step>`, or the file
  `checkpoint` in it; `pathlib.Path` or `epath.Path`.
  """
  if path.name == "checkpoint" and path.is_file():
    path = path.parent
  if path.is_dir() and not _is_step(path):
    # Unfinished writes have longer names, which do not match.
    steps = [p for p in path.iterdir() if STEP.fullmatch(p.name) and _is_step(p)]
    if not steps:
      return None
    path = max(steps, key=lambda p: int(STEP.fullmatch(p.name).group(1)))
  return path if _is_step(path) else None


def _is_step(folder: Any) -> bool:
  if (folder / "state" / "_METADATA").is_file() or (folder / "_METADATA").is_file():
    return True
  return (folder / "checkpoint").is_file() and not is_mesh_tensorflow(folder)


def is_mesh_tensorflow(folder: Any) -> bool:
  """Whether a folder is a TensorFlow checkpoint, as the first T5 was released in."""
  file = folder / "checkpoint"
  if file.is_file():
    with open_bytes(file) as opened:
      return opened.read(21) == b"model_checkpoint_path"
  return False


def open_source(folder: Any, max_distance: int = 128) -> Source:
  """Reads the tree of a step's folder; no weights.

  Args:
    folder: of `find`. max_distance: of the position bias, which no file states.

  Raises:
    UnreadableError: if a file is damaged or missing, or no T5 is in it.
  """
  state = folder / "state" if (folder / "state").is_dir() else folder
  orbax = (state / "_METADATA").is_file()
  leaves, step = _orbax(state) if orbax else _legacy(folder)
  target = t5x_names.plain(leaves, str(folder))
  arrays = {n: leaf for n, leaf in target.items() if t5x_names.OWN.fullmatch(n)}
  prompts = {name: leaf for name, leaf in target.items() if name not in arrays}
  shapes = {name: leaf.shape for name, leaf in arrays.items()}
  config = config_of(shapes, str(folder), max_distance)
  vocabulary = places.vocabulary(folder, config.vocab_size)
  if vocabulary in (None, "bytes"):
    vocabulary = places.vocabulary(folder.parent, config.vocab_size)
  return Source(folder, config, arrays, prompts, vocabulary, step)


def _legacy(folder: Any) -> tuple[dict[str, Lazy], int | None]:
  file = folder / "checkpoint"
  try:
    with open_bytes(file) as opened:
      leaves, zarrs, step, version = _parsed(file, opened)
  except UnreadableError as error:
    raise UnreadableError(f"{str(file)!r} is damaged: {error}") from error
  stored = [folder / f"target.{name.replace('/', '.')}" for name in zarrs]
  if len(set(stored)) != len(stored):
    raise UnreadableError(f"{str(file)!r} is damaged: two arrays have one name.")
  found = stores.arrays({repr(str(place)): stores.url(place) for place in stored})
  leaves |= dict(zip(zarrs, found.values(), strict=True))
  for name, leaf in leaves.items():
    if version == 2 and leaf.dtype == np.uint16:
      # That version had no name for this type.
      leaves[name] = viewed(leaf, jnp.bfloat16)
  return leaves, _step(step)


def _parsed(file: Any, opened: Any) -> tuple[dict[str, Lazy], list[str], Any, int]:
  """(arrays in place, names of zarr folders, step, version) of the msgpack file."""
  tree = msgpack_places.places(opened)
  if not isinstance(tree, dict) or not isinstance(tree.get("optimizer"), dict):
    raise UnreadableError("it holds no `optimizer`, so it is no T5X checkpoint.")
  version = tree.get("version", 0)
  if version not in (2, 3):
    raise UnreadableError(f"version {version!r}; versions 2 and 3 can be read.")
  leaves: dict[str, Lazy] = {}
  zarrs: list[str] = []

  def visit(name: str, node: Any) -> None:
    if isinstance(node, msgpack_places.Span):
      leaves[name] = _in_place(file, opened, node)
    elif isinstance(node, dict) and "driver" in node and "metadata" in node:
      zarrs.append(name)
    elif isinstance(node, dict) and node.get(_CHUNKED):
      leaves[name] = _chunks(file, opened, node, name)
    elif isinstance(node, dict):
      for key, child in node.items():
        visit(f"{name}/{key}" if name else str(key), child)

  visit("", tree["optimizer"].get("target"))
  state = tree["optimizer"].get("state")
  step = state.get("step") if isinstance(state, dict) else None
  if isinstance(step, msgpack_places.Span):
    step = _in_place(file, opened, step)
  return leaves, zarrs, step, version


def _step(value: Any) -> int | None:
  if isinstance(value, Lazy):
    # A run that T5X resumed with RESTORE_DTYPE counts in that type: 6.0.
    if value.shape in ((), (1,)) and value.dtype.kind in "iuf":
      number = value.read().reshape(()).item()
      return int(number) if float(number).is_integer() else None
    return None
  return value if isinstance(value, int) else None


def _in_place(file: Any, opened: Any, span: msgpack_places.Span) -> Lazy:
  """An array that stands in the msgpack file: [shape, dtype, bytes]."""
  found = msgpack_places.places(opened, span.start, span.start + span.length)
  if span.code not in _ARRAYS or not isinstance(found, list) or len(found) != 3:
    raise UnreadableError(f"an extension of type {span.code} is no array.")
  shape, name, data = found
  try:
    dtype = np.dtype(jnp.dtype(name))
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    fits = all(type(s) is int and s >= 0 for s in shape) and size == data.length
  except (AttributeError, TypeError, ValueError) as error:
    raise UnreadableError(f"an array of {name!r}, shape {shape!r}: {error}.") from error
  if not fits or dtype.hasobject:
    raise UnreadableError(f"an array of {name!r}, shape {shape!r}, is not all there.")
  return in_file(file, data.start, tuple(shape), dtype)


def _chunks(file: Any, opened: Any, node: Mapping[str, Any], name: str) -> Lazy:
  """An array above a gibibyte, which Flax stores as flat pieces."""
  try:
    count, rank = len(node["chunks"]), len(node["shape"])
    parts = [_in_place(file, opened, node["chunks"][str(i)]) for i in range(count)]
    shape = tuple(node["shape"][str(i)] for i in range(rank))
    sizes = [size for (size,) in (part.shape for part in parts)]
    if sum(sizes) != np.prod(shape, dtype=object) or min(shape, default=1) < 0:
      raise ValueError(f"{sizes} numbers do not make an array {shape}")
    if len({part.dtype for part in parts}) != 1:
      raise ValueError("they are of several types")
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise UnreadableError(f"the chunks of {name} do not fit: {error}.") from error
  return joined(parts, shape)


def _orbax(state: Any) -> tuple[dict[str, Lazy], int | None]:
  file = state / "_METADATA"
  fields = untrusted.read_object(file)
  try:
    entries = fields["tree_metadata"]
    names = [
      tuple(str(key["key"]) for key in entry["key_metadata"])
      for entry in entries.values()
      if entry["value_metadata"].get("value_type") not in (None, "None")
    ]
    if any("/" in part for name in names for part in name):
      raise ValueError("a name with a slash")
  except (KeyError, TypeError, AttributeError, ValueError) as error:
    raise UnreadableError(f"{str(file)!r} cannot be read: {error!r}.") from error
  inside = (state / "manifest.ocdbt").is_file()
  wanted = [n for n in names if n[:1] == ("target",) or n == ("state", "step")]
  kept = {}
  for name in wanted:
    place = ".".join(name)
    if inside:
      store = {"driver": "ocdbt", "base": stores.url(state), "path": f"{place}/"}
    else:
      store = stores.url(state / place)
    kept[f"{str(state)!r}: {place}"] = store
  driver = "zarr3" if fields.get("use_zarr3") is True else "zarr"
  found = zip(wanted, stores.arrays(kept, driver).values(), strict=True)
  leaves = {"/".join(name): leaf for name, leaf in found}
  step = _step(leaves.pop("state/step", None))
  return {name.removeprefix("target/"): leaf for name, leaf in leaves.items()}, step


def write_legacy(
  folder: str | pathlib.Path, backbone: T5, params: Any, step: int = 0
) -> pathlib.Path:
  """Writes `folder/checkpoint_<step>` as T5X with `use_orbax=False` does.

  Args:
    folder: of the model. backbone: architecture. params: weights, float32 or bfloat16,
      and prompts in T5X's branches where there are any.
    step: of the checkpoint.

  Returns:
    The folder of the step.
  """
  place = pathlib.Path(folder) / f"checkpoint_{step}"
  tree: dict[str, Any] = {}
  with whole_folder(place, listed_beside) as aside:
    for name, leaf in unrolled(params).items():
      value = np.asarray(leaf.read())
      where = f"target.{name.replace('/', '.')}"
      metadata = _metadata(value)
      _write({"driver": "file", "path": f"{aside / where}/"}, metadata, value)
      tree[name] = {
        "driver": "zarr",
        "dtype": value.dtype.name,
        "kvstore": {"driver": "file", "path": where},
        "metadata": metadata,
      }
    state = {"step": msgpack.ExtType(3, _packed(np.int32(step))), "param_states": {}}
    content = {
      "version": VERSION,
      "optimizer": {"target": unflatten(tree), "state": state},
    }
    (aside / "checkpoint").write_bytes(msgpack.packb(content, use_bin_type=True))
  return place


def write_orbax(
  folder: str | pathlib.Path, backbone: T5, params: Any, step: int = 0
) -> pathlib.Path:
  """Writes `folder/checkpoint_<step>` as T5X does today, through Orbax.

  Arguments and result are those of `write_legacy`.
  """
  leaves = unrolled(params).items()
  weights = unflatten({name: np.asarray(leaf.read()) for name, leaf in leaves})
  state = {"step": np.int32(step), "param_states": {}}
  name = f"checkpoint_{step}"
  options = ocp.CheckpointManagerOptions(step_prefix="checkpoint", create=True)
  place = pathlib.Path(folder) / name
  with whole_folder(place, listed_beside) as aside:
    with tempfile.TemporaryDirectory(dir=aside) as near:
      items = {"options": options, "item_names": ("state",)}
      with ocp.CheckpointManager(near, **items) as manager:
        tree = ocp.args.PyTreeSave({"target": weights, "state": state})
        manager.save(step, args=ocp.args.Composite(state=tree), force=True)
        manager.wait_until_finished()
      for path in (pathlib.Path(near) / name).iterdir():
        path.rename(aside / path.name)
  return place


def _packed(value: Any) -> bytes:
  value = np.asarray(value)
  return msgpack.packb((value.shape, value.dtype.name, value.tobytes()))


# The size that a chunk aims at, as T5X's does.
_CHUNK_BYTES = 64 << 20


def _metadata(value: np.ndarray) -> dict[str, Any]:
  chunks = list(value.shape)
  while np.prod(chunks, initial=value.itemsize) > _CHUNK_BYTES:
    largest = int(np.argmax(chunks))
    size = chunks[largest]
    divisor = next(d for d in range(2, size + 1) if size % d == 0)
    chunks[largest] = size // divisor
  dtype = "bfloat16" if value.dtype == jnp.bfloat16 else value.dtype.str
  return {
    "shape": list(value.shape),
    "chunks": chunks,
    "dtype": dtype,
    "compressor": {"id": "gzip", "level": 1},
  }


def _write(kvstore: Any, metadata: dict[str, Any], value: np.ndarray) -> None:
  spec = {"driver": "zarr", "kvstore": kvstore, "metadata": metadata}
  ts.open(spec, create=True, delete_existing=True).result().write(value).result()

"""T5X checkpoints, legacy (msgpack and zarr) and Orbax, read and written.

Only what stands under `target/` is read; the optimiser's state is left where it is.
Arrays are read through tensorstore one at a time; the msgpack file of the legacy
format, which may hold small arrays in place, is parsed with its extension types spelled
out here, so that nothing in a file is executed.
"""

import json
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.backbones.t5.stacking import unstack_layers
from prompt_tuning.core.files import whole_folder
from prompt_tuning.core.trainable import flatten, unflatten
from prompt_tuning.interop.source import Lazy, Source, UnreadableError, config_of

STEP = re.compile(r"checkpoint_(\d+)")
VERSION = 3
# Names of the backbone's own branches; what else is under `target/` is a prompt.
_OWN = re.compile(
  r"token_embedder/embedding|decoder/logits_dense/kernel|"
  r"(encoder|decoder)/(relpos_bias/rel_embedding|\w+_norm/scale|"
  r"layers_\d+/(\w*attention/(query|key|value|out)|mlp/(wi|wi_0|wi_1|wo))/kernel|"
  r"layers_\d+/pre_\w+_layer_norm/scale)"
)
_CHUNKED = "__msgpack_chunked_array__"


def find(path: pathlib.Path) -> pathlib.Path | None:
  """The step's folder that a path means, or None if it is no T5X checkpoint.

  Takes the model's folder (its largest step), `checkpoint_<step>`, or the file
  `checkpoint` in it.
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


def _is_step(folder: pathlib.Path) -> bool:
  if (folder / "state" / "_METADATA").is_file() or (folder / "_METADATA").is_file():
    return True
  file = folder / "checkpoint"
  if not file.is_file():
    return False
  with file.open("rb") as opened:
    return not opened.read(21).startswith(b"model_checkpoint_path")


def open_source(folder: pathlib.Path, max_distance: int = 128) -> Source:
  """Reads the tree of a step's folder; no zarr array is read.

  Args:
    folder: of `find`. max_distance: of the position bias, which no file states.

  Raises:
    UnreadableError: if a file is damaged or missing, or no T5 is in it.
  """
  state = folder / "state" if (folder / "state").is_dir() else folder
  orbax = (state / "_METADATA").is_file()
  leaves, step = _orbax(state) if orbax else _legacy(folder)
  target = {
    name.removeprefix("target/"): leaf
    for name, leaf in leaves.items()
    if name.startswith("target/")
  }
  arrays = {name: leaf for name, leaf in target.items() if _OWN.fullmatch(name)}
  prompts = {name: leaf for name, leaf in target.items() if name not in arrays}
  shapes = {name: leaf.shape for name, leaf in arrays.items()}
  config = config_of(shapes, str(folder), max_distance)
  vocabulary = "bytes" if config.vocab_size == 384 else None
  return Source(folder, config, arrays, prompts, vocabulary, step)


def _legacy(folder: pathlib.Path) -> tuple[dict[str, Lazy], int | None]:
  file = folder / "checkpoint"
  try:
    tree = msgpack.unpackb(
      file.read_bytes(), ext_hook=_extension, raw=False, strict_map_key=False
    )
  except UnreadableError as error:
    raise UnreadableError(f"{str(file)!r} is damaged: {error}") from error
  except Exception as error:  # msgpack has a dozen, some without a common base
    raise UnreadableError(f"{str(file)!r} is no msgpack: {error}.") from error
  if not isinstance(tree, dict) or not isinstance(tree.get("optimizer"), dict):
    raise UnreadableError(f"{str(file)!r} holds no `optimizer`: no T5X checkpoint.")
  version = tree.get("version", 0)
  if version not in (2, 3):
    raise UnreadableError(
      f"{str(file)!r} is of version {version!r}; versions 2 and 3 can be read."
    )
  optimizer = tree["optimizer"]
  leaves: dict[str, Lazy] = {}

  def visit(path: str, node: Any) -> None:
    if isinstance(node, dict) and "driver" in node and "metadata" in node:
      leaves[path] = _zarr_in(folder, path, node)
    elif isinstance(node, dict) and node.get(_CHUNKED):
      leaves[path] = _in_place(_joined(node, path))
    elif isinstance(node, dict):
      for name, child in node.items():
        visit(f"{path}/{name}", child)
    elif isinstance(node, np.ndarray):
      leaves[path] = _in_place(node, version)

  visit("target", optimizer.get("target"))
  state = optimizer.get("state")
  step = state.get("step") if isinstance(state, dict) else None
  return leaves, None if not np.isscalar(step) and not _scalar(step) else int(step)


def _scalar(value: Any) -> bool:
  return isinstance(value, np.ndarray) and value.size == 1


def _extension(code: int, data: bytes) -> Any:
  if code == 2:
    real, imaginary = msgpack.unpackb(data)
    return complex(real, imaginary)
  if code not in (1, 3):
    raise UnreadableError(f"unknown extension type {code}.")
  shape, dtype, raw = msgpack.unpackb(data, raw=True)
  try:
    kind = jnp.dtype(dtype.decode() if isinstance(dtype, bytes) else dtype)
    if kind.hasobject:
      raise UnreadableError("an array of objects.")
    return np.frombuffer(raw, kind).reshape(tuple(int(size) for size in shape))
  except (TypeError, ValueError) as error:
    raise UnreadableError(
      f"an array of {dtype!r}, shape {shape!r}: {error}."
    ) from error


def _joined(node: Mapping[str, Any], path: str) -> np.ndarray:
  try:
    numbers = [node["chunks"][str(i)] for i in range(len(node["chunks"]))]
    shape = [node["shape"][str(i)] for i in range(len(node["shape"]))]
    return np.concatenate(numbers).reshape([int(size) for size in shape])
  except (KeyError, TypeError, ValueError) as error:
    raise UnreadableError(f"The chunks of {path} do not fit: {error}.") from error


def _in_place(value: np.ndarray, version: int = VERSION) -> Lazy:
  if version == 2 and value.dtype == np.uint16:
    value = value.view(jnp.bfloat16)
  return Lazy(value.shape, lambda: np.array(value))


def _zarr_in(folder: pathlib.Path, path: str, node: Mapping[str, Any]) -> Lazy:
  # What the file says of drivers and places is of the machine that wrote it.
  where = folder / path.replace("/", ".")
  header = where / ".zarray"
  try:
    stated = json.loads(header.read_text())
    shape = tuple(int(size) for size in stated["shape"])
    chunks = tuple(int(size) for size in stated["chunks"])
    if (
      len(shape) != len(chunks)
      or min(chunks, default=1) < 1
      or min(shape, default=0) < 0
    ):
      raise ValueError(f"shape {shape} and chunks {chunks}")
  except (OSError, KeyError, TypeError, ValueError) as error:
    raise UnreadableError(f"{str(header)!r} cannot be read: {error}.") from error

  def read() -> np.ndarray:
    counts = [-(-size // chunk) for size, chunk in zip(shape, chunks, strict=True)]
    for place in np.ndindex(*counts):
      chunk = where / (".".join(map(str, place)) or "0")
      if not chunk.is_file():
        raise UnreadableError(f"The chunk {str(chunk)!r} is missing.")
    return _read({"driver": "file", "path": f"{where}/"}, str(where), shape)

  return Lazy(shape, read)


def _orbax(state: pathlib.Path) -> tuple[dict[str, Lazy], int | None]:
  file = state / "_METADATA"
  try:
    entries = json.loads(file.read_text())["tree_metadata"]
    names = [
      tuple(str(key["key"]) for key in entry["key_metadata"])
      for entry in entries.values()
      if entry["value_metadata"].get("value_type") not in (None, "None")
    ]
  except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
    raise UnreadableError(f"{str(file)!r} cannot be read: {error}.") from error
  leaves = {}
  for name in names:
    if name[:1] != ("target",):
      continue
    spec = _orbax_store(state, ".".join(name))
    where = f"{state}: {'.'.join(name)}"
    shape = tuple(_opened(spec, where).shape)
    leaves["/".join(name)] = Lazy(shape, _reader(spec, where, shape))
  step = None
  if ("state", "step") in names:
    spec = _orbax_store(state, "state.step")
    step = int(_read(spec, f"{state}: state.step", ()))
  return leaves, step


def _orbax_store(state: pathlib.Path, name: str) -> dict[str, Any]:
  if (state / "manifest.ocdbt").is_file():
    base = f"file://{state.absolute()}/"
    return {"driver": "ocdbt", "base": base, "path": f"{name}/"}
  return {"driver": "file", "path": f"{state.absolute() / name}/"}


def _reader(spec: Any, where: str, shape: tuple[int, ...]) -> Callable[[], np.ndarray]:
  return lambda: _read(spec, where, shape)


def _opened(kvstore: Any, where: str) -> Any:
  try:
    return ts.open(
      {"driver": "zarr", "kvstore": kvstore}, read=True, open=True
    ).result()
  except Exception as error:  # tensorstore raises ValueError, OSError, RuntimeError
    raise UnreadableError(f"{where!r} cannot be opened: {_first(error)}.") from error


def _read(kvstore: Any, where: str, shape: tuple[int, ...]) -> np.ndarray:
  array = _opened(kvstore, where)
  if tuple(array.shape) != shape:
    raise UnreadableError(f"{where!r} has shape {tuple(array.shape)}, not {shape}.")
  try:
    return np.asarray(array.read().result())
  except Exception as error:
    raise UnreadableError(f"{where!r} is damaged: {_first(error)}.") from error


def _first(error: Exception) -> str:
  return str(error).split(" [")[0].splitlines()[0][:300]


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
  flat = flatten(unstack_layers(params))
  place = pathlib.Path(folder) / f"checkpoint_{step}"
  tree: dict[str, Any] = {}
  with whole_folder(place) as aside:
    for name, value in flat.items():
      value = np.asarray(value)
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
  weights = jax.tree.map(np.asarray, unflatten(flatten(unstack_layers(params))))
  state = {"step": np.int32(step), "param_states": {}}
  options = ocp.CheckpointManagerOptions(step_prefix="checkpoint", create=True)
  place = pathlib.Path(folder).absolute()
  with ocp.CheckpointManager(place, options=options, item_names=("state",)) as manager:
    tree = ocp.args.PyTreeSave({"target": weights, "state": state})
    manager.save(step, args=ocp.args.Composite(state=tree), force=True)
    manager.wait_until_finished()
  return place / f"checkpoint_{step}"


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

"""Where arrays live: a mesh of (replica, data, model) and rules for named axes.

The only file that names a mesh axis. Rows of a batch are divided over replica and data,
frozen weights by rule over data and model; what trains is whole on every device unless
`trainable_rules` says otherwise. A size that its devices do not divide stays whole.
"""

import contextlib
import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from prompt_tuning.core import partition
from prompt_tuning.core import trainable as branches

AXES = ("replica", "data", "model")
BATCH, LAYERS = "batch", "layers"
Rule = tuple[str, str | tuple[str, ...] | None]
Names = Sequence[str | None]


@dataclasses.dataclass(frozen=True)
class Sharding:
  """How many devices each mesh axis has, and which named axes it divides.

  Attributes:
    num_partitions: devices of the model axis, T5X's name for it; None for 1, or for
      what `model_parallel_submesh` says.
    model_parallel_submesh: T5X's other form of the same, such as (2, 2, 1, 1): its
      product is the size of the model axis. Which chips stand together is JAX's choice.
    replicas: devices of the replica axis, over which weights are never divided. The
      data axis takes the devices that are left.
    rules: (name, mesh axis or axes or None) of frozen weights and activations. As in
      T5X the first rule wins whose mesh axes this array does not use yet.
    trainable_rules: the same for what trains and its optimiser's slots; () keeps them
      whole on every device.
  """

  num_partitions: int | None = None
  model_parallel_submesh: Sequence[int] | None = None
  replicas: int = 1
  rules: Sequence[Rule] = ((BATCH, AXES),)
  trainable_rules: Sequence[Rule] = ()

  def __post_init__(self) -> None:
    for field in ("rules", "trainable_rules"):
      rules = tuple(_rule(rule, field) for rule in getattr(self, field))
      object.__setattr__(self, field, rules)
    if BATCH not in dict(self.rules):
      raise ValueError(
        f"`Sharding.rules` (AXIS_RULES) has no rule for {BATCH!r}. Add "
        f"({BATCH!r}, ('replica', 'data'))."
      )
    for name in ("num_partitions", "replicas"):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise ValueError(f"`{name.upper()}` must be at least 1, got {value}.")

  @property
  def model_size(self) -> int:
    """Devices of the model axis."""
    if self.model_parallel_submesh is None:
      return self.num_partitions or 1
    size = math.prod(self.model_parallel_submesh)
    if self.num_partitions not in (None, size):
      raise ValueError(
        f"`MODEL_PARALLEL_SUBMESH` {tuple(self.model_parallel_submesh)} stands for a "
        f"model axis of {size} devices (its product), `NUM_PARTITIONS` for one of "
        f"{self.num_partitions}. Both set the same axis: give one of them."
      )
    return size

  def over(self, devices: Any = None) -> "Placement":
    """The mesh of these devices, all there are by default.

    Raises:
      ValueError: if the axes do not multiply to the number of devices.
    """
    devices = np.asarray(jax.devices() if devices is None else devices).reshape(-1)
    parts = self.replicas * self.model_size
    if len(devices) % parts:
      raise ValueError(
        f"{len(devices)} devices cannot be divided into REPLICAS x NUM_PARTITIONS = "
        f"{self.replicas} x {self.model_size}. NUM_PARTITIONS (or the product of "
        "MODEL_PARALLEL_SUBMESH) is the size of the model axis; it must divide the "
        "number of devices, and the data axis takes what is left."
      )
    shape = self.replicas, len(devices) // parts, self.model_size
    return Placement(Mesh(_arranged(shape, devices), AXES), self)


@dataclasses.dataclass(frozen=True)
class Placement:
  """A mesh and what is divided over it.

  Attributes:
    mesh: of AXES. config: the rules.
  """

  mesh: Mesh
  config: Sharding

  @functools.cached_property
  def rows(self) -> int:
    """Into how many parts the rows of a batch are divided."""
    sizes = dict(self.mesh.shape)
    return math.prod(sizes[axis] for axis in _axes(dict(self.config.rules)[BATCH]))

  @property
  def size(self) -> int:
    """How many devices there are."""
    return self.mesh.size

  @property
  def platform(self) -> str:
    """What its devices are: "cpu", "gpu", "tpu"."""
    return self.mesh.devices.flat[0].platform

  def describe(self) -> str:
    """Such as "replica 1 x data 4 x model 2"."""
    return " x ".join(f"{name} {size}" for name, size in self.mesh.shape.items())

  @property
  def replicated(self) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(self.mesh, PartitionSpec())

  @property
  def by_rows(self) -> NamedSharding:
    """Rows divided over the devices."""
    axes = self._real(_axes(dict(self.config.rules)[BATCH]))
    return NamedSharding(self.mesh, PartitionSpec(axes) if axes else PartitionSpec())

  def named(
    self,
    names: Names | None,
    shape: Sequence[int],
    rules: Sequence[Rule] | None = None,
    taken: Sequence[str] = (),
  ) -> NamedSharding:
    """The sharding of an array by the names of its axes.

    Args:
      names: one an axis; None where the array has no names. shape: its sizes.
      rules: those of the frozen weights by default.
      taken: mesh axes that may not be used.
    """
    if names is None or len(names) != len(shape):
      return self.replicated
    rules = self.config.rules if rules is None else rules
    entries: list[Any] = [None] * len(shape)
    decided, used = set(), set(taken)
    for name, wanted in rules:
      for i, own in enumerate(names):
        axes = self._real(_axes(wanted))
        if own != name or i in decided or used & set(axes):
          continue
        if shape[i] % math.prod(self.mesh.shape[axis] for axis in axes):
          continue
        decided.add(i)
        used |= set(axes)
        entries[i] = axes if len(axes) > 1 else (axes[0] if axes else None)
    while entries and entries[-1] is None:
      entries.pop()
    return NamedSharding(self.mesh, PartitionSpec(*entries))

  def _real(self, axes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(axis for axis in axes if self.mesh.shape[axis] > 1)

  def tree(self, shapes: Any, axes: Mapping[str, Names], trains: bool = False) -> Any:
    """Shardings of a tree of parameters.

    A layer's vectors (scales of norms, biases) stay whole: collecting one takes longer
    than reading it, and the compiler of TPUs weaves each such collection into all the
    products around it.

    Args:
      shapes: arrays, or what has their shapes. axes: path -> names of its axes.
      trains: whether the rules are those of what trains.
    """
    rules = self.config.trainable_rules if trains else self.config.rules

    def placed(path: str, leaf: Any) -> Any:
      names = axes.get(path)
      if names is not None and len(set(names) - {LAYERS}) < 2:
        names = None
      # A leaf of several arrays (int8 and its scales) has the names of its axes on all.
      return jax.tree.map(lambda x: self.named(names, x.shape, rules), leaf)

    flat = branches.flatten(shapes)
    return branches.unflatten({path: placed(path, leaf) for path, leaf in flat.items()})

  def beside(self, tree: Any, params: Any, shardings: Any) -> Any:
    """Shardings of a state: its copies and slots of parameters lie as these do.

    Args:
      tree: shapes of the state. params: shapes. shardings: theirs.
    """
    shapes, places = branches.flatten(params), branches.flatten(shardings)

    def place(path: Any, leaf: Any) -> NamedSharding:
      keys = [str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey)]
      for start in range(len(keys)):
        name = "/".join(keys[start:])
        if name in places and shapes[name].shape == leaf.shape:
          return places[name]
      return self.replicated

    return jax.tree_util.tree_map_with_path(place, tree)

  def params(self, model: Any, params: Any) -> Any:
    """Copies all parameters of a model to where frozen ones live."""
    axes = model.logical_axes(params)
    return put(params, self.tree(params, axes))

  def own_rows(self, size: int) -> list[int]:
    """Which of a batch's rows the devices of this process hold."""
    held = self.by_rows.addressable_devices_indices_map((size,)).values()
    return sorted({row for (part,) in held for row in range(*part.indices(size))})

  def put(
    self, batch: Mapping[str, np.ndarray], size: int | None = None
  ) -> dict[str, jax.Array]:
    """Copies a batch to the devices, rows divided.

    Args:
      batch: this process's own rows. size: rows of the whole batch; None where there
        is one process.
    """
    if self.by_rows.is_fully_addressable:
      return jax.device_put(dict(batch), self.by_rows)
    own = self.own_rows(size)

    def whole(rows: np.ndarray) -> jax.Array:
      def part(index: Any) -> np.ndarray:
        first, last, _ = index[0].indices(size)
        start = own.index(first)
        return rows[start : start + last - first]

      shape = size, *rows.shape[1:]
      return jax.make_array_from_callback(shape, self.by_rows, part)

    return {name: whole(rows) for name, rows in batch.items()}

  def fetch(self, tree: Any) -> Any:
    """NumPy arrays of a tree, collected from all processes where they must be."""
    leaves = jax.tree.leaves(tree)
    if not all(x.is_fully_addressable or x.is_fully_replicated for x in leaves):
      tree = jax.jit(lambda x: x, out_shardings=self.replicated)(tree)
    return jax.device_get(tree)

  def traced(self, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function to compile, in which the model's marks mean this placement."""

    @functools.wraps(function)
    def marked(*args: Any) -> Any:
      with partition.using(self._constrain):
        return function(*args)

    return marked

  def _constrain(self, x: Any, names: Names, weight: bool) -> Any:
    if self.mesh.size == 1:
      return x
    taken = _axes(dict(self.config.rules)[BATCH]) if weight else ()
    place = self.named(names, x.shape, taken=taken)
    return jax.lax.with_sharding_constraint(x, place)


@contextlib.contextmanager
def on_host() -> Iterator[None]:
  """New arrays are made in the host's memory, where there is a backend for it."""
  try:
    host = jax.local_devices(backend="cpu")[0]
  except RuntimeError:
    yield
    return
  with jax.default_device(host):
    yield


def put(tree: Any, shardings: Any) -> Any:
  """Copies arrays, the same in every process, to where they shall live."""

  def one(x: Any, place: NamedSharding) -> jax.Array:
    if place.is_fully_addressable:
      return jax.device_put(x, place)
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, place, lambda index: host[index])

  return jax.tree.map(one, tree, shardings)


def check_batch(
  size: int, microbatches: int, over: Placement, name: str = "BATCH_SIZE"
) -> None:
  """Raises ValueError where a batch cannot be divided evenly."""
  if microbatches < 1:
    raise ValueError(f"`MICROBATCHES` must be at least 1, got {microbatches}.")
  parts = over.rows * microbatches
  if size < 1 or size % parts:
    raise ValueError(
      f"`{name}` is {size}; it must be a multiple of {parts} (the {over.rows} parts "
      f"of the mesh {over.describe()} that rows are divided over x {microbatches} "
      "microbatches)."
    )


def bytes_per_device(leaf: Any, place: Any) -> int:
  """Bytes of an array, or of a leaf of several, on one device."""
  arrays, places = jax.tree.leaves(leaf), jax.tree.leaves(place)
  return sum(
    math.prod(where.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize
    for x, where in zip(arrays, places, strict=True)
  )


def _rule(rule: Any, field: str) -> Rule:
  try:
    name, wanted = rule
    known = isinstance(name, str) and set(_axes(wanted)) <= set(AXES)
  except (TypeError, ValueError):
    known = False
  if not known:
    raise ValueError(
      f"`Sharding.{field}` holds {rule!r}; a rule is a pair of a name (such as "
      f"'embed') and one of {AXES}, a tuple of them, or None."
    )
  return name, tuple(wanted) if isinstance(wanted, list) else wanted


def _axes(wanted: Any) -> tuple[str, ...]:
  if wanted is None:
    return ()
  return (wanted,) if isinstance(wanted, str) else tuple(wanted)


def _arranged(shape: tuple[int, int, int], devices: np.ndarray) -> np.ndarray:
  """Devices on the mesh, those of the model axis wired closest together."""
  try:
    return mesh_utils.create_device_mesh(
      shape, devices=list(devices), allow_split_physical_axes=True
    )
  except (NotImplementedError, ValueError) as error:
    logging.info("Devices stand in their own order: %s", error)
    return devices.reshape(shape)


# Rows of a batch over all devices.
DEFAULT = Sharding()

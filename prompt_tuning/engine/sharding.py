"""Where arrays live. The only file that names a mesh axis."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def mesh(devices: Any = None) -> Mesh:
  """All devices along one axis, over which batches are divided."""
  devices = jax.devices() if devices is None else devices
  return Mesh(np.asarray(devices), ("data",))


def replicated(over: Mesh) -> NamedSharding:
  """The same array on every device."""
  return NamedSharding(over, PartitionSpec())


def by_rows(over: Mesh) -> NamedSharding:
  """Rows divided over the devices."""
  return NamedSharding(over, PartitionSpec("data"))


def check_batch(
  size: int, microbatches: int, over: Mesh, name: str = "BATCH_SIZE"
) -> None:
  """Raises ValueError where a batch cannot be divided evenly."""
  if microbatches < 1:
    raise ValueError(f"`MICROBATCHES` must be at least 1, got {microbatches}.")
  parts = over.size * microbatches
  if size < 1 or size % parts:
    raise ValueError(
      f"`{name}` is {size}; it must be a multiple of {parts} "
      f"({over.size} devices x {microbatches} microbatches)."
    )


def put(batch: dict[str, np.ndarray], over: Mesh) -> dict[str, jax.Array]:
  """Copies a batch to the devices, rows divided."""
  return jax.device_put(batch, by_rows(over))

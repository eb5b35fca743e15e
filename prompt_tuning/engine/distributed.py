"""Several processes as one program, on JAX's own distributed runtime.

Each process runs the same command; flags or the environment say which one it is:

  --coordinator_address=HOST:PORT --process_count=N --process_index=I
  JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID
  --multiprocess     asks JAX, which knows Slurm, Open MPI, Kubernetes and TPU pods
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

# Flag -> field of Cluster; the names are T5X's.
FLAGS = {
  "--coordinator_address": "coordinator",
  "--process_count": "processes",
  "--process_index": "index",
}
VARIABLES = {
  "coordinator": "JAX_COORDINATOR_ADDRESS",
  "processes": "JAX_NUM_PROCESSES",
  "index": "JAX_PROCESS_ID",
}


@dataclasses.dataclass(frozen=True)
class Cluster:
  """Attributes:
  coordinator: HOST:PORT of the first process. processes: how many there are.
  index: which of them this one is, from 0. detect: ask JAX for all three.
  """

  coordinator: str | None = None
  processes: int | None = None
  index: int | None = None
  detect: bool = False


def cluster(flags: Mapping[str, str], detect: bool = False) -> Cluster:
  """What flags say, and where they are silent the environment.

  Raises:
    ValueError: if only a part is said, or a number is none.
  """
  found: dict[str, Any] = {}
  for flag, field in FLAGS.items():
    value = flags.get(flag, os.environ.get(VARIABLES[field]))
    if value is None:
      continue
    if field != "coordinator":
      if not value.isdigit():
        raise ValueError(f"`{flag}` must be a whole number, got {value!r}.")
      value = int(value)
    found[field] = value
  known = Cluster(**found, detect=detect)
  missing = [flag for flag, field in FLAGS.items() if field not in found]
  if missing and (found.keys() - {"coordinator"}) and not detect:
    raise ValueError(
      f"Several processes need {', '.join(FLAGS)} in each of them; missing: "
      f"{', '.join(missing)}. With --multiprocess JAX finds them by itself on Slurm, "
      "Open MPI, Kubernetes and TPU pods."
    )
  if not missing and not known.index < known.processes:
    raise ValueError(
      f"`--process_index` is {known.index}; it must be below `--process_count`, "
      f"{known.processes}."
    )
  return known


def start(known: Cluster) -> None:
  """Joins the other processes; does nothing where there is one.

  Raises:
    ValueError: if the processes do not find each other.
  """
  alone = known.processes in (None, 1)
  if alone and not known.detect:
    return
  try:
    jax.distributed.initialize(known.coordinator, known.processes, known.index)
  except (RuntimeError, ValueError) as error:
    raise ValueError(
      f"The processes did not find each other ({known}): {error}. Start all of them "
      "with the same --coordinator_address, which the first one must be able to open."
    ) from error


def is_first() -> bool:
  """Whether this process is the one that writes texts and speaks."""
  return jax.process_index() == 0


def several() -> bool:
  """Whether there is more than one process."""
  return jax.process_count() > 1


def wait(name: str) -> None:
  """Waits until all processes are here."""
  if several():
    multihost_utils.sync_global_devices(name)


def by_first(function: Callable[[], Any]) -> None:
  """Lets the first process do something, and all of them fail where it fails.

  Raises:
    ValueError, OSError: as the function does; ValueError in the other processes.
  """
  failed = None
  if is_first():
    try:
      function()
    except (ValueError, OSError) as error:
      failed = error
  if several():
    code = multihost_utils.broadcast_one_to_all(np.int32(failed is not None))
    if failed is None and code:
      raise ValueError("The first process could not go on; it says why.")
  if failed is not None:
    raise failed


def from_first(function: Callable[[], int]) -> int:
  """The number that a function gives in the first process, in all of them."""
  found = [0]
  by_first(lambda: found.append(function()))
  if not several():
    return found[-1]
  return int(multihost_utils.broadcast_one_to_all(np.int32(found[-1])))


def told(step: int) -> bool:
  """Whether SIGTERM has come to any process; all hear of it at the same step."""
  return multihost_utils.reached_preemption_sync_point(step)

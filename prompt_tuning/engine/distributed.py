"""Several processes as one program, on JAX's own distributed runtime.

Each process runs the same command; flags or the environment say which one it is:

  --coordinator_address=HOST:PORT --process_count=N --process_index=I
  JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID
  --multiprocess     asks JAX, which knows Slurm, Open MPI, Kubernetes and TPU pods
"""

import dataclasses
import hashlib
import json
import os
import sys
import traceback
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

# Seconds of silence after which a process counts as lost (JAX: 100), and for which one
# that has ended waits for the others (JAX: 300).
HEARTBEAT, SHUTDOWN = 30, 60
# Words of Gloo, NCCL and JAX's coordination service.
_LOST = (
  "heartbeat timeout",
  "Connection closed by peer",
  "Connection reset by peer",
  "coordination service",
  "Gloo",
  "NCCL",
)


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
    jax.distributed.initialize(
      known.coordinator,
      known.processes,
      known.index,
      heartbeat_timeout_seconds=HEARTBEAT,
      shutdown_timeout_seconds=SHUTDOWN,
    )
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
  # Asked before there are devices too, which counting processes would make.
  return jax.distributed.is_initialized() and jax.process_count() > 1


def wait(name: str) -> None:
  """Waits until all processes are here."""
  if several():
    multihost_utils.sync_global_devices(name)


def by_first(function: Callable[[], Any]) -> None:
  """Lets the first process do something, and all of them fail where it fails.

  Raises:
    Exception: as the function does; ValueError in the other processes.
  """
  together(lambda: function() if is_first() else None)


def together(function: Callable[[], Any]) -> Any:
  """What a function gives, which all processes call; all of them fail where one fails.

  Raises:
    Exception: as the function does; ValueError in the processes where it did not fail.
  """
  failed, found = None, None
  try:
    found = function()
  except Exception as error:
    failed = error
  if several():
    flags = _gathered(np.int32(failed is not None)).ravel()
    if failed is None and flags.any():
      which = int(np.flatnonzero(flags)[0])
      name = f"Process {which}" if which else "The first process"
      raise ValueError(f"{name} could not go on; it says why.")
  if failed is not None:
    raise failed
  return found


def from_first(function: Callable[[], Any]) -> Any:
  """What a function gives in the first process, in all of them: plain data.

  Raises:
    Exception: as `by_first`.
  """
  found: list[Any] = []
  by_first(lambda: found.append(function()))
  if not several():
    return found[0]
  text = json.dumps(found[0] if found else None).encode()
  size = multihost_utils.broadcast_one_to_all(np.int32(len(text)))
  data = np.resize(np.frombuffer(text, np.uint8), int(size))
  return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(data))))


def same(facts: Mapping[str, str | None]) -> None:
  """Refuses processes that do not hold the same.

  Args:
    facts: what is compared -> its text; the names are the same everywhere.

  Raises:
    ValueError: in all processes, naming the first thing that differs, and where.
  """
  if not several():
    return
  digests = [hashlib.sha256(str(text).encode()).digest() for text in facts.values()]
  rows = np.array([np.frombuffer(digest, np.uint8) for digest in digests])
  every = _gathered(rows)
  for number, name in enumerate(facts):
    differs = (every[:, number] != every[0, number]).any(axis=-1)
    if differs.any():
      raise ValueError(
        f"The {name} of process {int(np.flatnonzero(differs)[0])} is not that of the "
        "first process. Give all processes the same."
      )


def _gathered(values: Any) -> np.ndarray:
  return np.asarray(multihost_utils.process_allgather(values))


def told(count: int) -> bool:
  """Whether SIGTERM has come to any process; all hear of it at the same count."""
  return multihost_utils.reached_preemption_sync_point(count)


def lost(error: BaseException) -> str | None:
  """What to say of an error that means that another process is gone, else None."""
  text = f"{error} {error.__cause__}"
  if not several() or not any(word in text for word in _LOST):
    return None
  return (
    "Another process of this run is gone. Start all of them again with the same "
    "command to go on from the newest checkpoint."
  )


def leave(error: BaseException) -> None:
  """Ends this process at once, one of several: none may wait for what cannot come.

  Does nothing where there is one process.
  """
  if not several():
    return
  text = lost(error)
  if text is None and isinstance(error, OSError):
    text = str(error)
  if text is None:
    traceback.print_exception(error)
  else:
    print(f"error: {text}", file=sys.stderr)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(2)

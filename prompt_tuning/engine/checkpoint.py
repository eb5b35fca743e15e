"""Training checkpoints: trainable branches, optimiser slots and step; whole or absent.

The frozen backbone is not saved again. Orbax writes each checkpoint aside and renames
it; a folder that is not whole all the same (half copied, say) is put aside, and so is
one that turns out to be damaged: the checkpoint before it takes its place.
"""

import contextlib
import gc
import importlib
import json
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp

from prompt_tuning.core import files
from prompt_tuning.engine import distributed, records
from prompt_tuning.engine.state import TrainState

# What a whole checkpoint holds: Orbax writes the first last of all.
WHOLE = ("_CHECKPOINT_METADATA", "default/manifest.ocdbt")


def taken(folder: Any) -> int:
  """Steps of the newest whole checkpoint in a folder; 0 without one. Opens none."""
  folder = files.at(folder)
  found = [path for path in folder.glob("*") if _is_step(path) and _whole(path)]
  return max((int(path.name) for path in found), default=0)


def _is_step(path: Any) -> bool:
  return path.name.isascii() and path.name.isdigit()


def _whole(path: Any) -> bool:
  return all((path / name).exists() for name in WHOLE)


def _dated(path: Any) -> bool:
  """Whether Orbax can make dates of what a checkpoint's metadata say; or says none."""
  try:
    found = records.read_object(path)
  except records.DamagedError:
    return True
  dates = (found.get(f"{name}_timestamp_nsecs") for name in ("init", "commit"))
  return all(
    date is None or (records.is_number(date) and abs(date) < 2**63) for date in dates
  )


def check_place(folder: Any) -> None:
  """Raises ValueError where checkpoints there need a package that is missing."""
  if not str(folder).startswith("gs://"):
    return
  try:
    importlib.import_module("google.cloud.storage")
  except ImportError as error:
    raise ValueError(
      f"`MODEL_DIR` {str(folder)!r} needs google-cloud-storage, with which Orbax asks "
      "a bucket what it is: pip install 'prompt-tuning[gcs]'."
    ) from error


class _Manager(ocp.CheckpointManager):
  """Orbax's, but for its own question whether the run is told to end.

  JAX wants to be asked by a count that only rises; `engine.interrupt` counts.
  """

  def reached_preemption(self, step: int) -> bool:
    return False


class Checkpoints:
  """The checkpoints of one run.

  Attributes:
    folder: where they live.
  """

  def __init__(self, folder: Any, keep: int = 2) -> None:
    self.folder = files.at(folder)
    if not files.is_remote(folder):
      self.folder = self.folder.absolute()
    if distributed.is_first():
      _set_aside(self.folder)
    distributed.wait("checkpoints are looked through")
    options = ocp.CheckpointManagerOptions(
      max_to_keep=keep, create=True, cleanup_tmp_directories=True
    )
    self._options = options
    _quiet_failures()
    self._manager = _Manager(self.folder, options=options)

  def newest(self) -> int | None:
    """The newest whole checkpoint's step, or None."""
    return self._manager.latest_step()

  def save(self, state: TrainState) -> None:
    """Starts saving; training goes on while the files are written.

    Raises:
      OSError: if this or the save before could not be written (a full disk, say).
    """
    step = int(state.step)
    if self.newest() != step:
      with _written(self.folder):
        self._manager.save(step, args=ocp.args.StandardSave(state))

  def restore(self, like: TrainState, step: int | None = None) -> TrainState:
    """The newest (or given) checkpoint, in the shapes and shardings of `like`.

    Raises:
      ValueError: if it is damaged, or holds other parameters (Orbax names them all).
    """
    step = self.newest() if step is None else step
    shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    try:
      found = self._manager.restore(step, args=ocp.args.StandardRestore(shapes))
      if int(found.step) != step:
        raise ValueError(f"it holds step {int(found.step)}")
      return found
    except Exception as error:  # a damaged file raises whatever its reader raises
      raise ValueError(
        f"The checkpoint {str(self.folder / str(step))!r} cannot be restored: {error}. "
        "Remove that folder to go on from the checkpoint before it."
      ) from error

  def resume(self, like: TrainState, say: Callable[[str], None]) -> TrainState | None:
    """The newest checkpoint that can be read, or None where there is none.

    A damaged one is renamed `damaged-STEP`, and `say` is told.

    Raises:
      ValueError: if it holds other parameters than `like`.
    """
    with _quiet_tasks():
      return self._resumed(like, say)

  def _resumed(self, like: TrainState, say: Callable[[str], None]) -> TrainState | None:
    while (step := self.newest()) is not None:
      try:
        return self.restore(like, step)
      except ValueError as error:
        if not self._damaged(like, step, error):
          raise
        text = str(error.__cause__).strip().splitlines() or [""]
      self._manager.close()
      if distributed.is_first():
        aside = _put_aside(self.folder / str(step), "damaged")
        logging.warning("%.300s, now %s", text[0], aside.name)
      distributed.wait(f"checkpoint {step} is put aside")
      self._manager = _Manager(self.folder, options=self._options)
      before = self.newest()
      instead = "starting anew" if before is None else f"going back to step {before}"
      say(f"The checkpoint of step {step} is damaged and was put aside; {instead}.")
    return None

  def _damaged(self, like: TrainState, step: int, error: Exception) -> bool:
    """Whether a checkpoint fails to load although it claims to be what is wanted."""
    if "shape" in str(error):
      return False
    try:
      text = (self.folder / str(step) / "default" / "_METADATA").read_text()
      tree = json.loads(text)["tree_metadata"]
      found = {
        "/".join(str(key["key"]) for key in leaf["key_metadata"])
        for leaf in tree.values()
        if leaf["value_metadata"].get("write_shape") is not None
      }
    except Exception:  # it says nothing that can be compared
      return True
    leaves = jax.tree_util.tree_leaves_with_path(like)
    return found == {
      jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves
    }

  def wait(self) -> None:
    """Waits for what is being written.

    Raises:
      OSError: if it could not be written.
    """
    with _written(self.folder):
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for what is being written, and saves no more.

    Raises:
      OSError: if it could not be written.
    """
    with _written(self.folder):
      self._manager.wait_until_finished()
      self._manager.close()


@contextlib.contextmanager
def _quiet_tasks() -> Iterator[None]:
  """Orbax awaits the first array that cannot be read; asyncio complains of the rest."""
  complaints = logging.getLogger("asyncio")
  before, complaints.disabled = complaints.disabled, True
  try:
    yield
  finally:
    gc.collect()
    complaints.disabled = before


def _is_told(record: logging.LogRecord) -> bool:
  """Whether a record is no failure of Orbax's threads, which `_written` tells of."""
  failed = record.exc_info is not None and record.levelno >= logging.ERROR
  return not (failed and "orbax" in record.pathname)


class _Hook:
  """`sys.excepthook` that leaves out what TensorStore's threads say after a failure."""

  def __init__(self, before: Any) -> None:
    self._before = before

  def __call__(self, kind: Any, error: Any, trace: Any) -> None:
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
      self._before(kind, error, trace)


def _quiet_failures() -> None:
  """A save that fails is told of once, where it is waited for: not by each thread."""
  logging.getLogger("absl").addFilter(_is_told)
  if not isinstance(sys.excepthook, _Hook):
    sys.excepthook = _Hook(sys.excepthook)


@contextlib.contextmanager
def _written(folder: Any) -> Iterator[None]:
  """Says what a failed save means; what Orbax raises depends on where it failed."""
  try:
    yield
  except Exception as error:
    raise OSError(
      f"A checkpoint could not be written into {str(folder)!r}: {error}. Those before "
      "it are whole: make room, then give the same command to go on."
    ) from error


def _put_aside(path: Any, why: str) -> Any:
  aside = path.with_name(f"{why}-{path.name}")
  number = 1
  while aside.exists():
    number += 1
    aside = path.with_name(f"{why}-{path.name}-{number}")
  return path.rename(aside)


def _set_aside(folder: Any) -> None:
  """Warns of unfinished checkpoints; renames those that bear a step's name."""
  for path in sorted(folder.glob("*")) if folder.is_dir() else ():
    if _is_step(path) and not _whole(path):
      aside = _put_aside(path, "unfinished")
      logging.warning("Unfinished checkpoint ignored: %s, now %s", path, aside.name)
    elif _is_step(path) and not _dated(path / WHOLE[0]):
      aside = _put_aside(path, "damaged")
      logging.warning("Damaged checkpoint ignored: %s, now %s", path, aside.name)
    elif ".orbax-checkpoint-tmp" in path.name:
      logging.warning("Unfinished checkpoint ignored: %s", path)

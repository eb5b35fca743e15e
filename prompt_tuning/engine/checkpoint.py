"""Training checkpoints: trainable branches, optimiser slots and step; whole or absent.

The frozen backbone is not saved again. Orbax writes each checkpoint aside and renames
it; a folder that is not whole all the same (half copied, say) is put aside.
"""

import logging
import pathlib

import jax
import orbax.checkpoint as ocp

from prompt_tuning.engine import distributed
from prompt_tuning.engine.state import TrainState

# What a whole checkpoint holds: Orbax writes the first last of all.
WHOLE = ("_CHECKPOINT_METADATA", "default/manifest.ocdbt")


class Checkpoints:
  """The checkpoints of one run.

  Attributes:
    folder: where they live.
  """

  def __init__(self, folder: str | pathlib.Path, keep: int = 2) -> None:
    self.folder = pathlib.Path(folder).absolute()
    if distributed.is_first():
      _set_aside(self.folder)
    distributed.wait("checkpoints are looked through")
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
    self._manager = ocp.CheckpointManager(self.folder, options=options)

  def newest(self) -> int | None:
    """The newest whole checkpoint's step, or None."""
    return self._manager.latest_step()

  def save(self, state: TrainState) -> None:
    """Starts saving; training goes on while the files are written."""
    step = int(state.step)
    if self.newest() != step:
      self._manager.save(step, args=ocp.args.StandardSave(state))

  def restore(self, like: TrainState, step: int | None = None) -> TrainState:
    """The newest (or given) checkpoint, in the shapes and shardings of `like`.

    Raises:
      ValueError: if it is damaged, or holds other parameters (Orbax names them all).
    """
    step = self.newest() if step is None else step
    shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    try:
      return self._manager.restore(step, args=ocp.args.StandardRestore(shapes))
    except (ValueError, OSError) as error:
      raise ValueError(
        f"The checkpoint {str(self.folder / str(step))!r} cannot be restored: {error}. "
        "Remove that folder to go on from the checkpoint before it."
      ) from error

  def close(self) -> None:
    """Waits for what is being written."""
    self._manager.wait_until_finished()
    self._manager.close()


def _set_aside(folder: pathlib.Path) -> None:
  """Warns of unfinished checkpoints; renames those that bear a step's name."""
  for path in sorted(folder.glob("*")) if folder.is_dir() else ():
    if path.name.isdigit() and not all((path / name).exists() for name in WHOLE):
      aside = path.with_name(f"unfinished-{path.name}")
      number = 1
      while aside.exists():
        number += 1
        aside = path.with_name(f"unfinished-{path.name}-{number}")
      path.rename(aside)
      logging.warning("Unfinished checkpoint ignored: %s, now %s", path, aside.name)
    elif ".orbax-checkpoint-tmp" in path.name:
      logging.warning("Unfinished checkpoint ignored: %s", path)

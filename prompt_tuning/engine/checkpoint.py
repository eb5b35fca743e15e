"""Training checkpoints: trainable branches, optimiser slots and step; whole or absent.

The frozen backbone is not saved again. Orbax writes each checkpoint aside and renames
it, so an interrupted save is never taken for a checkpoint.
"""

import pathlib

import jax
import orbax.checkpoint as ocp

from prompt_tuning.engine.state import TrainState


class Checkpoints:
  """The checkpoints of one run.

  Attributes:
    folder: where they live.
  """

  def __init__(self, folder: str | pathlib.Path, keep: int = 2) -> None:
    self.folder = pathlib.Path(folder).absolute()
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
    """The newest (or given) checkpoint, in the shapes and shardings of `like`."""
    step = self.newest() if step is None else step
    shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    return self._manager.restore(step, args=ocp.args.StandardRestore(shapes))

  def close(self) -> None:
    """Waits for what is being written."""
    self._manager.wait_until_finished()
    self._manager.close()

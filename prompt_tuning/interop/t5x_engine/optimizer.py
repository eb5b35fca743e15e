"""Our optimiser as T5X's: the branches that train have a state, nothing else does."""

from typing import Any

import flax.struct
import jax
import numpy as np
import optax
from t5x import optimizers

from prompt_tuning.core import trainable as branches
from prompt_tuning.engine.optimizer import Optimizer
from prompt_tuning.interop.t5x_engine import tree

Tree = Any


@flax.struct.dataclass
class HyperParams:
  """T5X hands over its schedule's rate, which goes unread: ours is the optimiser's."""

  learning_rate: float | None = None


class BranchOptimizer(optimizers.OptimizerDef):
  """An `engine.optimizer.Optimizer` on the named branches.

  The state is kept flat, a name for each of its arrays, because T5X joins names with
  "/" and takes them apart again. Frozen parameters are handed on as they are.

  Attributes:
    optimizer: rule, schedule and rates.
    trainable: branches that train, in our names, such as ("prompt",).
    prompt: whose parameters are among them.
  """

  def __init__(self, optimizer: Optimizer, trainable: Any, prompt: Any) -> None:
    super().__init__(HyperParams())
    self.optimizer, self.trainable, self.prompt = optimizer, tuple(trainable), prompt

  def init_state(self, params: Tree) -> optimizers.OptimizerState:
    trains, _ = self._split(params)
    state = self.optimizer.build(trains).init(trains)
    return optimizers.OptimizerState(np.int32(0), _named(state))

  def apply_gradient(
    self,
    hyper_params: Any,
    params: Tree,
    state: optimizers.OptimizerState,
    grads: Tree,
  ) -> tuple[Tree, optimizers.OptimizerState]:
    del hyper_params
    trains, frozen = self._split(params)
    gradient, _ = self._split(grads)
    transform = self.optimizer.build(trains)
    before = _restored(jax.eval_shape(transform.init, trains), state.param_states)
    updates, after = transform.update(gradient, before, trains)
    moved = optax.apply_updates(trains, updates)
    whole = tree.to_t5x(branches.merge(moved, frozen), self.prompt)
    return (
      tree.alike(whole, params),
      optimizers.OptimizerState(state.step + 1, _named(after)),
    )

  def derive_logical_axes(self, optimizer: Any, param_logical_axes: Tree) -> Any:
    """Axes of an array of the state: its parameter's, where it has that shape."""
    trains, _ = jax.eval_shape(self._split, optimizer.target)
    shapes = {path: leaf.shape for path, leaf in branches.flatten(trains).items()}
    axes = branches.flatten(
      tree.from_t5x(param_logical_axes, self.prompt, lambda names: (None, *names))
    )

    def derive(name: str, leaf: Any) -> Any:
      for path, shape in shapes.items():
        if name.endswith(f".{path.replace('/', '.')}") and leaf.shape == shape:
          return jax.sharding.PartitionSpec(*axes[path])
      return None

    named = optimizer.state.param_states
    state = optimizers.OptimizerState(
      None, {name: derive(name, leaf) for name, leaf in named.items()}
    )
    return optimizers.Optimizer(optimizer.optimizer_def, state, param_logical_axes)

  def _split(self, params: Tree) -> tuple[dict, dict]:
    return branches.split(tree.from_t5x(params, self.prompt), self.trainable)


def _named(state: Any) -> dict[str, Any]:
  leaves = jax.tree_util.tree_leaves_with_path(state)
  return {_name(path): leaf for path, leaf in leaves}


def _restored(shapes: Any, named: dict[str, Any]) -> Any:
  return jax.tree_util.tree_map_with_path(lambda path, _: named[_name(path)], shapes)


def _name(path: Any) -> str:
  return jax.tree_util.keystr(path, simple=True, separator=".").replace("/", ".")

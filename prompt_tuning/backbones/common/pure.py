"""What the backbones of all families do alike: a Flax module as pure functions.

A family's class is a frozen dataclass of a `config` and of `found`, what `traced` asks
for; it says which `Network` its parameters are those of.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax.core import unfreeze
from flax.linen import partitioning
from jaxtyping import Array, Float, Int

from prompt_tuning.backbones.common import int8, traces
from prompt_tuning.backbones.common.switches import SWITCHES

Params = Any


class Pure:
  """Attributes:
  config: the architecture. found: filled by each pass with what `traces` names; None
    where nobody asks.
  """

  network: ClassVar[Any]
  config: Any
  found: dict[str, Array] | None

  @property
  def architecture(self) -> dict[str, Any]:
    """What must match for weights to fit, as JSON has it."""
    return self.config.to_json()

  @property
  def switches(self) -> dict[str, Any]:
    """What may change while weights still fit."""
    return {name: getattr(self.config, name) for name in SWITCHES}

  @property
  def cache_axis(self) -> int:
    """Which axis of a cache's arrays is the batch."""
    return 1 if self.config.scan_layers else 0

  def module(self, train: bool = False) -> Any:
    return self.network(self.config, train)

  def recast(self, **switches: Any) -> Any:
    """The same architecture with other switches, such as dropout_rate=0.1.

    Raises:
      ValueError: for a switch that there is not, or that does not fit the others.
    """
    unknown = sorted(set(switches) - set(SWITCHES))
    if unknown:
      raise ValueError(f"{unknown} are no switches; there are {list(SWITCHES)}.")
    return type(self)(dataclasses.replace(self.config, **switches))

  def traced(self, *args: Any) -> tuple[Any, dict[str, Array]]:
    """What `run` gives, and of each of `traces` the values in every layer."""
    tracing = type(self)(self.config, {})
    return tracing.run(*args), tracing.found

  def init(self, key: Any) -> Params:
    """Random weights."""
    return self._init(key)["params"]

  def logical_axes(self) -> Params:
    """The logical axis names of every parameter, as a tree of tuples."""
    shapes = jax.eval_shape(self._init, jax.random.key(0))
    specs = unfreeze(partitioning.get_axis_names(shapes["params_axes"]))
    # A PartitionSpec is a tuple in some versions of JAX only.
    return jax.tree.map(tuple, specs, is_leaf=lambda x: not isinstance(x, dict))

  def shapes(self) -> Params:
    """Shapes and dtypes of the weights; nothing is allocated."""
    return jax.eval_shape(self.init, jax.random.key(0))

  def held_shapes(self) -> Params:
    """The same, as the switch `weights_dtype` says to keep weights once read."""
    dtype = self.config.weights_dtype
    if dtype == "int8":
      return int8.shapes(self.shapes())
    return jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype), self.shapes()
    )

  def _init(self, key: Any) -> Any:
    return self.module().init(key, *self._first_inputs())

  def table(self, params: Params) -> Float[Array, "V H"]:
    """The token table."""
    table = params["token_embedder"]["embedding"]
    return table.wide() if isinstance(table, int8.Quantised) else table

  def embed(self, params: Params, ids: Int[Array, "*X"]) -> Float[Array, "*X H"]:
    return self.apply(params, "embed", ids)

  def logits(
    self, params: Params, states: Float[Array, "*X H"]
  ) -> Float[Array, "*X V"]:
    """float32 logits of states."""
    return self.apply(params, "logits", states).astype(jnp.float32)

  def apply(self, params: Params, method: str, *args: Any, key: Any = None) -> Any:
    """A method of the network on weights; `key` switches dropout on."""
    rngs = None if key is None else {"dropout": key}
    module, given = self.module(train=key is not None), {"params": params}
    if self.found is None:
      return module.apply(given, *args, rngs=rngs, method=method)
    out, sown = module.apply(given, *args, rngs=rngs, method=method, mutable=["trace"])
    self.found.update(traces.kept(sown))
    return out

"""A learned map of inner gradients, SUPMER's psi (Pan et al., 2023, "Self-supervised
Meta-Prompt Learning with Meta-Gradient Regularization for Few-shot Generalization").

  psi(x) = (1 - w) x + w g(x)                x [P H], the gradient of a table
  g(x):    h = x, then twice h <- ReLU(h V U + b), each row of the end as long as x's
  w        = sigmoid(MLP of the mean state of the inputs)

Rows of g are not negative at the published start, so that they begin at a right angle
to x. With start "identity", our choice, U = 0 and each layer is added to its input,
without ReLU at the end, and w begins near 0: psi begins as x.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from prompt_tuning.core import trainable as branches
from prompt_tuning.core.forward import Forward
from prompt_tuning.objectives.two_level import TwoLevel

STARTS = ("published", "identity")
# Units of the gate.
_UNITS = 24


class Psi(nn.Module):
  """psi of one table.

  Attributes:
    rank: R, columns of V. start: of `STARTS`.
  """

  rank: int
  start: str = "published"

  @nn.compact
  def __call__(
    self, x_PH: Float[Array, "P H"], state_H: Float[Array, " H"]
  ) -> Float[Array, "P H"]:
    identity = self.start == "identity"
    draw = nn.initializers.normal(1.0)
    H, h_PH = x_PH.shape[-1], x_PH
    for i in range(2):
      V_HR = self.param(f"down_{i}", draw, (H, self.rank))
      last = nn.initializers.zeros if identity else draw
      U_RH = self.param(f"up_{i}", last, (self.rank, H))
      b_H = self.param(f"bias_{i}", nn.initializers.zeros, (H,))
      made_PH = h_PH @ V_HR @ U_RH + b_H[None]
      h_PH = h_PH + made_PH if identity else nn.relu(made_PH)
    g_PH = h_PH * _ratio(_length(x_PH), _length(h_PH))
    y_U = nn.relu(nn.Dense(_UNITS, name="gate_hidden")(state_H))
    bias = nn.initializers.constant(-4.0 if identity else 0.0)
    w_1 = nn.sigmoid(nn.Dense(1, bias_init=bias, name="gate")(y_U))
    return (1 - w_1[None]) * x_PH + w_1[None] * g_PH


def _length(x_PH: Float[Array, "P H"]) -> Float[Array, "P 1"]:
  # The small number keeps the root's own gradient finite at a row of zeros.
  return jnp.sqrt(jnp.square(x_PH).sum(-1, keepdims=True) + 1e-24)


def _ratio(wanted: Array, found: Array) -> Array:
  """Where nothing was found nothing is made longer."""
  return jnp.where(found > 1e-11, wanted / jnp.maximum(found, 1e-11), 0.0)


@dataclasses.dataclass(frozen=True)
class MappedTwoLevel(TwoLevel):
  """Two levels whose inner gradients go through psi before they are taken.

  Its weights train with the outer loss; they are no part of the product.

  Attributes:
    rank: R; None for the backbone's width. start: of `STARTS`. name: of its branch.
  """

  rank: int | None = None
  start: str = "published"
  name: str = "gradient_map"

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.start not in STARTS:
      raise ValueError(
        f"`MappedTwoLevel.start` is {self.start!r}; it must be one of {STARTS}."
      )
    if self.rank is not None and self.rank < 1:
      raise ValueError(
        f"`MappedTwoLevel.rank` is {self.rank}; it must be from 1, or None for the "
        "backbone's width."
      )

  def init(self, key: Any, model: Any, params: Any) -> Any:
    """Weights of psi, for tables as wide as the backbone."""
    H = model.backbone.spec.width
    if not any(_fits(x, H) for x in jax.tree.leaves(params[self.branch])):
      raise ValueError(
        f"`MappedTwoLevel` maps gradients of tables [P {H}], but the branch "
        f"{self.branch!r} holds none. Take TwoLevel."
      )
    psi = Psi(self.rank or H, self.start)
    return psi.init(key, jnp.zeros((1, H)), jnp.zeros(H))["params"]

  def mapped(self, change: Any, forward: Forward) -> Any:
    """Gradients of tables through psi; others as they are."""
    states_BTH, mask_BT = map(jax.lax.stop_gradient, forward.encoded)
    total_H = jnp.where(mask_BT[..., None], states_BTH, 0).sum((0, 1))
    state_H = total_H.astype(jnp.float32) / jnp.maximum(mask_BT.sum(), 1)
    weights, H = forward.own(self.name), state_H.shape[-1]
    psi = Psi(self.rank or H, self.start)

    def one(x: Array) -> Array:
      if not _fits(x, H):
        return x
      return psi.apply({"params": weights}, x.reshape(-1, H), state_H).reshape(x.shape)

    found = {path: one(x) for path, x in branches.flatten(change).items()}
    return branches.unflatten(found)


def _fits(x: Any, H: int) -> bool:
  """Whether an array is rows as wide as the backbone, however they are stacked."""
  return len(x.shape) > 1 and x.shape[-1] == H

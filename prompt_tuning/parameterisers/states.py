"""Generators that read the states u_t of a layer, each divided by its root mean square.

`Pooled` makes the prompt of the mean state: LPT's NPG (Liu et al., 2022, "Late Prompt
Tuning", arXiv 2210.11292), and IDPG's M version (Wu et al., 2022), whose layers share
all but the output bias:
  Z_g = drop(f(drop(mean) W1 + b1) W2 + b2_g)        trains H r + r + r PH + G PH

`Segments` pools P stretches of the text, so its size does not hang on P: LPT's APPG
(the average) and MPPG (the maximum). Stretch p of T tokens holds those from floor(p T /
P) to below ceil((p + 1) T / P):
  Q = u W1 + b1,  Z_p = drop(ReLU(pool_p(Q)) W2 + b2)         trains 2 H r + r + H

T5 has no first token that stands for the text, so the mean does. T5's states have no
fixed scale, hence the root mean square, of the mean there and of each token here.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from prompt_tuning.blocks.norms import unit_rms
from prompt_tuning.core.axes import along
from prompt_tuning.core.context import Spec, mean_of_each
from prompt_tuning.core.layers import Reader
from prompt_tuning.core.prompt import AXES, Initializer, Shape, weight
from prompt_tuning.inits import uniform

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  "relu": jax.nn.relu,
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}
POOLS = ("average", "maximum")


class Pooled(nn.Module):
  """The whole prompt of one vector.

  Attributes:
    width: r. activation: f, "relu" or "gelu".
    dropout_rate: on the mean and the hidden layer.
    prompt_dropout_rate: on the prompt itself.
    initializer: draws both kernels; None for the framework's default.
    bias_initializer: draws the output biases [G P H], the static prompt.
  """

  reads_code: ClassVar[bool] = False
  reads_states: ClassVar[bool] = True
  width: int
  activation: str = "relu"
  dropout_rate: float = 0.0
  prompt_dropout_rate: float = 0.1
  initializer: Initializer | None = None
  bias_initializer: Initializer = uniform.normal(0.02)

  def __post_init__(self) -> None:
    check_width(self.width)
    if self.activation not in ACTIVATIONS:
      raise ValueError(
        f"`Pooled.activation` must be one of {list(ACTIVATIONS)}, got "
        f"{self.activation!r}."
      )
    super().__post_init__()

  @nn.compact
  def __call__(
    self, code: None, shape: Shape, spec: Spec, train: bool = False
  ) -> Reader:
    _, P, H = shape
    shared = _down(self, H, spec)
    initializer = self.initializer or uniform.symmetric(self.width**-0.5)
    sizes, axes = (self.width, P * H), ("mlp", "embed")
    shared["up_kernel"] = weight(self, "up_kernel", initializer, sizes, spec, axes)
    bias = weight(self, "up_bias", self.bias_initializer, shape, spec, AXES)
    rates = self.dropout_rate, self.prompt_dropout_rate
    return Reader(shared, {"up_bias": bias}, MakePooled(self.activation, *rates))


class Segments(nn.Module):
  """One vector a stretch of the text.

  Attributes:
    width: r. pool: "average" or "maximum".
    prompt_dropout_rate: on the prompt itself.
    initializer: draws both kernels; None for the framework's default.
  """

  reads_code: ClassVar[bool] = False
  reads_states: ClassVar[bool] = True
  width: int
  pool: str = "average"
  prompt_dropout_rate: float = 0.1
  initializer: Initializer | None = None

  def __post_init__(self) -> None:
    check_width(self.width)
    if self.pool not in POOLS:
      raise ValueError(f"`Segments.pool` must be one of {POOLS}, got {self.pool!r}.")
    super().__post_init__()

  @nn.compact
  def __call__(
    self, code: None, shape: Shape, spec: Spec, train: bool = False
  ) -> Reader:
    G, P, H = shape
    if G > 1:
      raise ValueError(
        f"`Segments` makes one table, but the site asks for {G}. Bind "
        "`AtLayers.once = True`."
      )
    shared = _down(self, H, spec)
    initializer = self.initializer or uniform.symmetric(self.width**-0.5)
    sizes, axes = (self.width, H), ("mlp", "embed")
    shared["up_kernel"] = weight(self, "up_kernel", initializer, sizes, spec, axes)
    shared["up_bias"] = weight(self, "up_bias", uniform.zeros(), (H,), spec, axes[1:])
    return Reader(shared, {}, MakeSegments(P, self.pool, self.prompt_dropout_rate))


@dataclasses.dataclass(frozen=True)
class MakePooled:
  """`core.layers.Reader.make` of `Pooled`."""

  activation: str
  dropout_rate: float
  prompt_dropout_rate: float

  def __call__(
    self,
    shared: Any,
    own: Any,
    states_BTH: Float[Array, "B T H"],
    text_BST: Bool[Array, "B S T"],
    key: Any = None,
  ) -> Float[Array, "B S P H"]:
    mean_BSH = unit_rms(mean_of_each(_wide(states_BTH), text_BST))
    mean_BSH = _drop(mean_BSH, self.dropout_rate, key, 0)
    hidden_BSF = _affine(mean_BSH, shared, "down")
    hidden_BSF = ACTIVATIONS[self.activation](hidden_BSF)
    hidden_BSF = _drop(hidden_BSF, self.dropout_rate, key, 1)
    made_BSX = hidden_BSF @ shared["up_kernel"]
    bias_PH = own["up_bias"]
    made_BSPH = (
      made_BSX.reshape(*made_BSX.shape[:2], *bias_PH.shape) + bias_PH[None, None]
    )
    return _drop(made_BSPH, self.prompt_dropout_rate, key, 2)


@dataclasses.dataclass(frozen=True)
class MakeSegments:
  """`core.layers.Reader.make` of `Segments`."""

  length: int
  pool: str
  prompt_dropout_rate: float

  def __call__(
    self,
    shared: Any,
    own: Any,
    states_BTH: Float[Array, "B T H"],
    text_BST: Bool[Array, "B S T"],
    key: Any = None,
  ) -> Float[Array, "B S P H"]:
    del own
    q_BTF = _affine(unit_rms(_wide(states_BTH)), shared, "down")
    pooled_BSPF = (average if self.pool == "average" else maximum)(
      q_BTF, stretches(text_BST, self.length)
    )
    made_BSPH = _affine(jax.nn.relu(pooled_BSPF), shared, "up")
    return _drop(made_BSPH, self.prompt_dropout_rate, key, 0)


def stretches(text_BST: Bool[Array, "B S T"], P: int) -> Bool[Array, "B S P T"]:
  """Which tokens belong to the p-th of P stretches of each text.

  Stretches overlap where P does not divide a text, and repeat where it is shorter.
  """
  rank_BSIT = (jnp.cumsum(text_BST, axis=-1) - 1)[:, :, None]
  count_BSII = text_BST.sum(-1)[..., None, None]
  p_P = jnp.arange(P)[None, None, :, None]
  first, end = p_P * count_BSII // P, -(-(p_P + 1) * count_BSII // P)
  return text_BST[:, :, None] & (rank_BSIT >= first) & (rank_BSIT < end)


def average(
  q_BTF: Float[Array, "B T F"], held_BSPT: Bool[Array, "B S P T"]
) -> Float[Array, "B S P F"]:
  """Mean over each stretch; zero where there is no text."""
  weights = held_BSPT.astype(q_BTF.dtype)
  total_BSPF = jnp.einsum("BSPT,BTF->BSPF", weights, q_BTF)
  return total_BSPF / jnp.maximum(weights.sum(-1, keepdims=True), 1)


def maximum(
  q_BTF: Float[Array, "B T F"], held_BSPT: Bool[Array, "B S P T"]
) -> Float[Array, "B S P F"]:
  """Maximum over each stretch; zero where there is no text."""
  B, S, P, T = held_BSPT.shape
  held_PBST = jnp.moveaxis(held_BSPT, 2, 0)

  def place(held_BST: Array) -> Array:
    q_BSTF = jnp.where(held_BST[..., None], q_BTF[:, None], -jnp.inf)
    return jnp.argmax(q_BSTF, axis=2)

  # Places first and one stretch after the other: [B S P T F] is never held.
  place_PBSF = jax.lax.map(place, held_PBST)
  place_BXF = jnp.moveaxis(place_PBSF, 0, 2).reshape(B, S * P, -1)
  found_BSPF = jnp.take_along_axis(q_BTF, place_BXF, axis=1).reshape(B, S, P, -1)
  return jnp.where(held_BSPT.any(-1, keepdims=True), found_BSPF, 0)


def _down(module: Any, H: int, spec: Spec) -> dict[str, Array]:
  """W1 and b1."""
  initializer, axes = module.initializer or uniform.symmetric(H**-0.5), ("embed", "mlp")
  kernel = weight(module, "down_kernel", initializer, (H, module.width), spec, axes)
  bias = weight(module, "down_bias", uniform.zeros(), (module.width,), spec, axes[1:])
  return {"down_kernel": kernel, "down_bias": bias}


def _affine(x: Array, held: Any, name: str) -> Array:
  product = x @ held[f"{name}_kernel"]
  return product + along(held[f"{name}_bias"], product)


def _wide(states_BTH: Array) -> Array:
  return states_BTH.astype(jnp.float32)


def _drop(x: Array, rate: float, key: Any, number: int) -> Array:
  if key is None or not rate:
    return x
  kept = jax.random.bernoulli(jax.random.fold_in(key, number), 1 - rate, x.shape)
  return jnp.where(kept, x / (1 - rate), 0)


def check_width(width: Any) -> None:
  if not isinstance(width, int) or isinstance(width, bool) or width < 1:
    raise ValueError(
      f"`width` (GENERATOR_WIDTH) must be a whole number from 1, got {width!r}."
    )

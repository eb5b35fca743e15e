"""IAPT's generator: each layer pools its own states by attention and makes its prompt.

  U = u W1,  A = softmax_t(U S),  G = A^T U,  Z = f(G) W2      in every layer
  f(x) = sum_{j=0..6} a_j x^j / (1 + |sum_{i=1..5} b_i x^i|)

Trains 2 H r + r P + 12 a layer. Zhu et al., 2024, "IAPT: Instruction-Aware Prompt
Tuning for Large Language Models" (arXiv 2405.18203), where f starts as GELU: the
numbers below are a fit of ours on [-3, 3], off by 1.1e-4 at most. Each state u_t is
divided by its root mean square, our choice: T5's have no fixed scale.
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from prompt_tuning.blocks.linear import kernel
from prompt_tuning.blocks.norms import unit_rms
from prompt_tuning.core.context import Spec
from prompt_tuning.core.layers import Reader
from prompt_tuning.core.prompt import Initializer, Shape, weight
from prompt_tuning.parameterisers.states import check_width

GELU_ABOVE = (
  2.821743e-05, 0.5, 0.3984995, 0.1624519, 0.06417779, 0.01835064, 0.002103334
)  # fmt: skip
GELU_BELOW = (0.0, 0.3249038, 0.0, 0.03670129, 0.0)


class Attended(nn.Module):
  """The prompt of each layer, P positions from P ways to weigh the text.

  Attributes:
    width: r. learned: whether f's coefficients are parameters, else GELU's stay.
    initializer: draws the kernels; None for U(+-1 / sqrt(fan in)).
  """

  reads_code: ClassVar[bool] = False
  reads_states: ClassVar[bool] = True
  width: int
  learned: bool = True
  initializer: Initializer | None = None

  def __post_init__(self) -> None:
    check_width(self.width)
    super().__post_init__()

  @nn.compact
  def __call__(
    self, code: None, shape: Shape, spec: Spec, train: bool = False
  ) -> Reader:
    G, P, H = shape
    r = self.width
    own = {}
    for name, rows, columns, axes in (
      ("down", H, r, ("tables", "embed", "mlp")),
      ("attend", r, P, ("tables", "mlp", "prompt")),
      ("up", r, H, ("tables", "mlp", "embed")),
    ):
      size = G, rows, columns
      own[name] = kernel(self, name, size, self.initializer, spec, axes)
    for name, start in (("above", GELU_ABOVE), ("below", GELU_BELOW)):
      size = (G, len(start))
      own[name] = (
        weight(self, name, _repeated(start), size, spec, ("tables", None))
        if self.learned
        else jnp.broadcast_to(jnp.asarray(start), size)
      )
    return Reader({}, own, MakeAttended())


def _repeated(values: tuple[float, ...]) -> Initializer:
  return lambda key, shape, spec: jnp.broadcast_to(jnp.asarray(values), shape)


@dataclasses.dataclass(frozen=True)
class MakeAttended:
  """`core.layers.Reader.make` of `Attended`."""

  def __call__(
    self,
    shared: Any,
    own: Any,
    states_BTH: Float[Array, "B T H"],
    text_BST: Bool[Array, "B S T"],
    key: Any = None,
  ) -> Float[Array, "B S P H"]:
    del shared, key
    u_BTF = unit_rms(states_BTH.astype(jnp.float32)) @ own["down"]
    scores_BPT = (u_BTF @ own["attend"]).swapaxes(1, 2)
    seen_BSPT = jnp.where(text_BST[:, :, None], scores_BPT[:, None], -1e10)
    pooled_BSPF = jnp.einsum("BSPT,BTF->BSPF", jax.nn.softmax(seen_BSPT), u_BTF)
    return rational(pooled_BSPF, own["above"], own["below"]) @ own["up"]


def rational(
  x: Float[Array, "*X"], above_7: Float[Array, "7"], below_5: Float[Array, "5"]
) -> Float[Array, "*X"]:
  """f of the head of this file, coefficients from the lowest power on."""
  over = jnp.zeros_like(x)
  for number in range(6, -1, -1):
    over = over * x + above_7[number]
  under = jnp.zeros_like(x)
  for number in range(4, -1, -1):
    under = (under + below_5[number]) * x
  return over / (1 + jnp.abs(under))

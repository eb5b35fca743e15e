"""A bidirectional LSTM over masked sequences, with the usual two biases a gate."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from prompt_tuning.core.context import Spec
from prompt_tuning.core.prompt import Initializer, weight
from prompt_tuning.inits import uniform


class BiLstm(nn.Module):
  """One layer, both directions.

  Attributes:
    units: of each direction.
  """

  units: int

  @nn.compact
  def __call__(
    self, x_RQC: Float[Array, "R Q C"], mask_RQ: Bool[Array, "R Q"], spec: Spec
  ) -> tuple[Float[Array, "R Q 2*C"], Float[Array, "R 2*C"]]:
    """(outputs of every step, last forward state beside first backward state)."""
    outputs, ends = [], []
    for direction, reverse in (("forward", False), ("backward", True)):
      output, end = self._run(direction, x_RQC, mask_RQ, reverse, spec)
      outputs.append(output)
      ends.append(end)
    return jnp.concatenate(outputs, -1), jnp.concatenate(ends, -1)

  def _run(
    self,
    direction: str,
    x_RQC: jax.Array,
    mask_RQ: jax.Array,
    reverse: bool,
    spec: Spec,
  ) -> tuple[jax.Array, jax.Array]:
    units = self.units
    draw: Initializer = uniform.symmetric(units**-0.5)

    def parameter(name: str, *shape: int) -> jax.Array:
      return weight(self, f"{direction}_{name}", draw, shape, spec)

    inner = parameter("input_kernel", x_RQC.shape[-1], 4 * units)
    recurrent = parameter("recurrent_kernel", units, 4 * units)
    bias = parameter("input_bias", 4 * units) + parameter("recurrent_bias", 4 * units)
    # All inputs at once, outside of the loop over steps.
    given_QRF = jnp.einsum("RQC,CF->QRF", x_RQC, inner) + bias[None, None]

    def step(state, item):
      hidden, cell = state
      given, real = item
      gates = jnp.split(given + hidden @ recurrent, 4, axis=-1)
      i, f, o = (jax.nn.sigmoid(gates[k]) for k in (0, 1, 3))
      new_cell = f * cell + i * jnp.tanh(gates[2])
      new_hidden = o * jnp.tanh(new_cell)
      # A pad leaves the state as it was.
      keep = real[:, None]
      state = jnp.where(keep, new_hidden, hidden), jnp.where(keep, new_cell, cell)
      return state, jnp.where(keep, state[0], 0)

    zero = jnp.zeros((x_RQC.shape[0], units), given_QRF.dtype)
    (end, _), outputs_QRF = jax.lax.scan(
      step, (zero, zero), (given_QRF, mask_RQ.T), reverse=reverse
    )
    return outputs_QRF.transpose(1, 0, 2), end

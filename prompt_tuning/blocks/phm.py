"""Parameterised hypercomplex multiplication: a kernel as a sum of Kronecker products.

  W[X Y] = sum_i A_i[n n] (x) B_i[X/n Y/n],  i = 1..n

Zhang et al., 2021, "Beyond Fully-Connected Layers with Quaternions".
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def check(name: str, value: int, n: int) -> None:
  """Raises ValueError unless `n` divides a size."""
  if n < 1 or value % n:
    raise ValueError(
      f"PHM of order {n} must divide {name} = {value}. Choose an order that divides "
      "the code's width, the bottleneck and PROMPT_LENGTH * width."
    )


def kernel(
  a_NIJ: Float[Array, "n n n"], b_NXY: Float[Array, "n X Y"]
) -> Float[Array, "n*X n*Y"]:
  """The dense kernel, built once a step."""
  n = a_NIJ.shape[0]
  _, X, Y = b_NXY.shape
  return jnp.einsum("nij,nxy->ixjy", a_NIJ, b_NXY).reshape(n * X, n * Y)


def multiply(
  x: Float[Array, "R n*X"], a_NIJ: Float[Array, "n n n"], b_NXY: Float[Array, "n X Y"]
) -> Float[Array, "R n*Y"]:
  """x W without building W: cheaper where R is small against the kernel."""
  n = a_NIJ.shape[0]
  _, X, Y = b_NXY.shape
  inner = jnp.einsum("rix,nxy->rniy", x.reshape(-1, n, X), b_NXY)
  return jnp.einsum("rniy,nij->rjy", inner, a_NIJ).reshape(x.shape[0], n * Y)


def draw(key: jax.Array, shape: tuple[int, ...], spec: object) -> Array:
  """N(0, 0.05^2), IDPG's start for A, B and the first bias."""
  del spec
  return 0.05 * jax.random.normal(key, shape)

"""Rows of a frozen bank, found by queries that read the text.

  q = softmax_t((Q Wq) . (x_t Wk) / sqrt(H)) x_t Wv,   s = q M^T / sqrt(H)
  Z_p = M[argmax_n s_pn], with the gradient of softmax(s) M;  or the best c by softmax

Q[P H], Wq, Wk and Wv[H H] train: P H + 3 H^2; the bank M[N H] is the leaf `bank`, which
TRAINABLE leaves out. Bari et al., 2022, "SPT: Semi-Parametric Prompt Tuning for
Multitask Prompted Learning" (arXiv 2212.10929). Experimental: the paper's retrieval is
not stated in what could be read; queries, scores and their scale are our choice.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from prompt_tuning.core.context import Code, Spec
from prompt_tuning.core.prompt import AXES, Drawn, Initializer, Shape, weight
from prompt_tuning.inits import uniform


class Retrieve(nn.Module):
  """One table an example, each row of it from the bank.

  Attributes:
    entries: N. top: c, rows that are mixed; 1 takes the best alone.
    initializer: draws the queries [G P H]. bank_initializer: draws the bank [N H].
    kernel_initializer: draws the kernels; None for U(+-1 / sqrt(H)).
  """

  reads_code: ClassVar[bool] = True
  entries: int
  top: int = 1
  initializer: Initializer = uniform.normal(1.0)
  bank_initializer: Initializer = uniform.normal(1.0)
  kernel_initializer: Initializer | None = None

  def __post_init__(self) -> None:
    if not 1 <= self.top <= self.entries:
      raise ValueError(
        "`Retrieve.top` must be from 1 to `entries`, got "
        f"{self.top} of {self.entries} entries."
      )
    super().__post_init__()

  @nn.compact
  def __call__(
    self, code: Code, shape: Shape, spec: Spec, train: bool = False
  ) -> Drawn:
    H = shape[-1]
    C = code.values.shape[-1]
    initializer = self.kernel_initializer or uniform.symmetric(C**-0.5)

    def kernel(name: str, rows: int) -> jax.Array:
      return weight(self, name, initializer, (rows, H), spec, ("embed", None))

    table_GPH = weight(self, "queries", self.initializer, shape, spec, AXES)
    axes = (None, "embed")
    bank_NH = weight(self, "bank", self.bank_initializer, (self.entries, H), spec, axes)
    bank_NH = jax.lax.stop_gradient(bank_NH)
    queries = table_GPH @ kernel("query", H)
    keys, values = (code.values @ kernel(name, C) for name in ("key", "value"))
    scores_RGPT = jnp.einsum("GPH,RTH->RGPT", queries, keys) * H**-0.5
    mask = code.mask[:, None, None]
    shares = jax.nn.softmax(jnp.where(mask, scores_RGPT, -1e10))
    found = jnp.einsum("RGPT,RTH->RGPH", shares, values)
    return Drawn(self._rows(jnp.einsum("RGPH,NH->RGPN", found, bank_NH), bank_NH))

  def _rows(self, scores_RGPN: jax.Array, bank_NH: jax.Array) -> jax.Array:
    scores_RGPN = scores_RGPN * bank_NH.shape[-1] ** -0.5
    if self.top > 1:
      least = jax.lax.top_k(scores_RGPN, self.top)[0][..., -1:]
      kept = jnp.where(scores_RGPN >= least, scores_RGPN, -jnp.inf)
      return jax.nn.softmax(kept) @ bank_NH
    soft = jax.nn.softmax(scores_RGPN) @ bank_NH
    # Adds nothing, and hands on the gradient.
    return bank_NH[scores_RGPN.argmax(-1)] + (soft - jax.lax.stop_gradient(soft))

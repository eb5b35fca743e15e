"""The mean of one head of self-attention over the text's embeddings.

  a = mean_t softmax_u((x_t Wq) . (x_u Wk) / sqrt(d)) (x_u Wv)       trains 2 C d + C^2

with u and t over real tokens, and d = C. arXiv 2506.05629 (ID-SPAM). Each x_t is
divided by its root mean square, our choice: T5's embeddings have no fixed scale.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from prompt_tuning.conditions.tokens import Tokens
from prompt_tuning.core.context import Code, Context, Spec, masked_mean, pooled
from prompt_tuning.core.prompt import Initializer, weight
from prompt_tuning.inits import uniform


class SelfAttentionMean(nn.Module):
  """One vector an example.

  Attributes:
    initializer: draws the three kernels [C C]; None for U(+-1 / sqrt(C)).
  """

  needs: ClassVar[frozenset[str]] = frozenset()
  initializer: Initializer | None = None

  @nn.compact
  def __call__(self, context: Context, spec: Spec, train: bool = False) -> Code:
    code = Tokens(name="tokens")(context, spec)
    C = code.values.shape[-1]
    initializer = self.initializer or uniform.symmetric(C**-0.5)

    def kernel(name: str) -> jax.Array:
      return weight(self, name, initializer, (C, C), spec, ("embed", None))

    query, key, value = (code.values @ kernel(n) for n in ("query", "key", "value"))
    scores_RTU = jnp.einsum("RTC,RUC->RTU", query, key) * C**-0.5
    scores_RTU = jnp.where(code.mask[:, None], scores_RTU, -1e10)
    mixed_RTC = jnp.einsum("RTU,RUC->RTC", jax.nn.softmax(scores_RTU), value)
    return pooled(masked_mean(mixed_RTC, code.mask))

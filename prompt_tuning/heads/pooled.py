"""Numbers an example, from one vector of the frozen model's states.

  linear       drop(h) W + b                       trains C * (H + 1)
  dense_tanh   drop(tanh(drop(h) U + a)) W + b     trains H * (H + 1) + C * (H + 1)

The first is PTEC's (Buchner et al., 2024, "Prompt Tuned Embedding Classification for
Industry Sector Allocation") and a linear probe's, the second RoBERTa's. h is what the
backbone makes of the prompted input: of T5 the mean of the encoder's last states at the
text's own tokens (positions of the prompt are left out, which speak through attention),
or the first state of the decoder, which is fed its start token alone.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from prompt_tuning.blocks.linear import linear
from prompt_tuning.core.context import Spec
from prompt_tuning.inits import uniform

FORMS = ("linear", "dense_tanh")
# Of kernels; biases start at 0.
SCALE = 0.02


class Pooled(nn.Module):
  """C numbers an example: logits of classes, or one number.

  Attributes:
    classes: C.
    pool: a view of the backbone, such as "mean" or "first"; see `core.model`.
    form: one of `FORMS`. dropout_rate: on what each layer reads, in training.
    initializer: draws the kernels; None for N(0, 0.02^2).
  """

  classes: int
  pool: str = "mean"
  form: str = "linear"
  dropout_rate: float = 0.0
  initializer: Any = None

  def __post_init__(self) -> None:
    whole = isinstance(self.classes, int) and not isinstance(self.classes, bool)
    if not whole or self.classes < 1:
      raise ValueError(
        "`Pooled.classes` must be a whole number from 1, one a label or 1 for a "
        f"number, got {self.classes!r}. Set LABELS."
      )
    if self.form not in FORMS:
      raise ValueError(
        f"`Pooled.form` (HEAD_FORM) must be one of {FORMS}, got {self.form!r}."
      )
    if not 0 <= self.dropout_rate < 1:
      raise ValueError(
        "`Pooled.dropout_rate` (HEAD_DROPOUT) must be a share below 1, got "
        f"{self.dropout_rate!r}."
      )
    super().__post_init__()

  @property
  def view(self) -> str:
    """What it reads of the backbone."""
    return self.pool

  @nn.compact
  def __call__(
    self, vectors_RH: Float[Array, "R H"], spec: Spec, train: bool = False
  ) -> Float[Array, "R C"]:
    """float32 numbers of each example.

    Args:
      vectors_RH: the view. spec: of the backbone. train: whether anything is dropped.
    """
    drop = nn.Dropout(self.dropout_rate, deterministic=not train)
    rule = self.initializer or uniform.normal(SCALE), spec
    x_RH = drop(vectors_RH.astype(jnp.float32))
    if self.form == "dense_tanh":
      x_RH = drop(jnp.tanh(linear(self, "dense", x_RH, spec.width, *rule)))
    return linear(self, "out", x_RH, self.classes, *rule)


def count(labels: Sequence[str] | None) -> int:
  """C: one number a label, or one where there are none."""
  return len(labels) if labels else 1

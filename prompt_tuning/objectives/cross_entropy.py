"""Token cross-entropy of the targets, with z-loss and label smoothing.

The z-loss is that of Mesh TensorFlow and T5X: z * log(Z)^2 with Z the sum of
exponentiated logits.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from prompt_tuning.objectives.objective import Term


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
  """Mean over target tokens (pads and reserved positions are not targets).

  Attributes:
    z_loss: weight of log(Z)^2. label_smoothing: mass spread over the vocabulary.
  """

  z_loss: float = 0.0
  label_smoothing: float = 0.0

  def __post_init__(self) -> None:
    if not 0 <= self.label_smoothing < 1:
      raise ValueError(
        f"`CrossEntropy.label_smoothing` must be in [0, 1), got {self.label_smoothing}."
      )
    if self.z_loss < 0:
      raise ValueError(f"`CrossEntropy.z_loss` must be >= 0, got {self.z_loss}.")

  def __call__(self, model: Any, params: Any, batch: Any, key: Any) -> Term:
    logits_BUV = model.logits(params, batch, key)
    targets_BU = batch["targets"]
    real_BU = (targets_BU > 0).astype(jnp.float32)
    loss_BU, plain_BU = token_losses(
      logits_BUV, targets_BU, self.z_loss, self.label_smoothing
    )
    weight = jnp.maximum(real_BU.sum(), 1.0)
    # The largest logit is known from the loss; finding its place would cost a pass.
    target_BU = _at(logits_BUV, targets_BU)
    right_BU = (target_BU >= logits_BUV.max(-1)) * real_BU
    metrics = {
      "cross_entropy": ((plain_BU * real_BU).sum(), weight),
      "token_accuracy": (right_BU.sum(), weight),
    }
    return Term((loss_BU * real_BU).sum(), weight, metrics)


def token_losses(
  logits_BUV: Float[Array, "B U V"],
  targets_BU: Int[Array, "B U"],
  z_loss: float = 0.0,
  label_smoothing: float = 0.0,
) -> tuple[Float[Array, "B U"], Float[Array, "B U"]]:
  """(loss, plain cross-entropy) of each token."""
  log_z_BU = jax.nn.logsumexp(logits_BUV, axis=-1)
  plain_BU = log_z_BU - _at(logits_BUV, targets_BU)
  loss_BU = plain_BU
  if label_smoothing:
    # T5X's form: mass 1 - s on the target, s / (V - 1) on each other word.
    V = logits_BUV.shape[-1]
    rest = label_smoothing / (V - 1)
    every_BU = V * log_z_BU - logits_BUV.sum(-1)
    loss_BU = (1 - label_smoothing - rest) * plain_BU + rest * every_BU
    # Less the smoothed target's own entropy, so that the least loss is 0.
    keep = 1 - label_smoothing
    entropy = -(keep * jnp.log(keep) + (V - 1) * rest * jnp.log(rest))
    loss_BU = loss_BU - entropy
  if z_loss:
    loss_BU = loss_BU + z_loss * jnp.square(log_z_BU)
  return loss_BU, plain_BU


def _at(logits_BUV: Array, targets_BU: Array) -> Array:
  return jnp.take_along_axis(logits_BUV, targets_BU[..., None], -1)[..., 0]

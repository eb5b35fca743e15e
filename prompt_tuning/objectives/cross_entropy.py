"""Token cross-entropy of the targets, with z-loss and label smoothing.

The z-loss is that of Mesh TensorFlow and T5X: z * log(Z)^2 with Z the sum of
exponentiated logits.

Logits are the largest array of a step when targets are long: [B U V] in float32. They
are made, used and forgotten for a few target positions at a time, and made again for
the gradient.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from prompt_tuning.core.forward import Forward
from prompt_tuning.objectives.objective import Objective, Term


@dataclasses.dataclass(frozen=True)
class CrossEntropy(Objective):
  """Mean over target tokens (pads and reserved positions are not targets).

  Attributes:
    z_loss: weight of log(Z)^2. label_smoothing: mass spread over the vocabulary.
    most_logits: numbers of [B U V] that are held at once; one target position of the
      batch at least.
  """

  z_loss: float = 0.0
  label_smoothing: float = 0.0
  most_logits: int = 2**25

  def __post_init__(self) -> None:
    if not 0 <= self.label_smoothing < 1:
      raise ValueError(
        f"`CrossEntropy.label_smoothing` must be in [0, 1), got {self.label_smoothing}."
      )
    if self.z_loss < 0:
      raise ValueError(f"`CrossEntropy.z_loss` must be >= 0, got {self.z_loss}.")
    if self.most_logits < 1:
      raise ValueError(
        f"`CrossEntropy.most_logits` must be at least 1, got {self.most_logits}."
      )

  def count(self, batch: Any) -> Float[Array, ""]:
    """Target tokens."""
    return (batch["targets"] > 0).sum().astype(jnp.float32)

  def __call__(self, forward: Forward) -> Term:
    states_BUH, targets_BU = forward.states, forward.batch["targets"]

    def sums(states_BUH: Array, targets_BU: Array) -> tuple[Array, Array, Array]:
      return self._sums(forward.logits(states_BUH), targets_BU)

    B, U = targets_BU.shape
    few = max(1, self.most_logits // (B * forward.model.backbone.spec.vocabulary))
    if few >= U:
      found = sums(states_BUH, targets_BU)
    else:
      found = _in_parts(jax.checkpoint(sums), few, states_BUH, targets_BU)
    loss, plain, right = found
    weight = self.count(forward.batch)
    metrics = {"cross_entropy": (plain, weight), "token_accuracy": (right, weight)}
    return Term(loss, weight, metrics)

  def _sums(
    self, logits_BUV: Float[Array, "B U V"], targets_BU: Int[Array, "B U"]
  ) -> tuple[Array, Array, Array]:
    """Loss, plain cross-entropy and right tokens, summed over the real targets."""
    real_BU = (targets_BU > 0).astype(jnp.float32)
    loss_BU, plain_BU = token_losses(
      logits_BUV, targets_BU, self.z_loss, self.label_smoothing
    )
    # The largest logit is known from the loss; finding its place would cost a pass.
    target_BU = _at(logits_BUV, targets_BU)
    right_BU = (target_BU >= logits_BUV.max(-1)) * real_BU
    return (loss_BU * real_BU).sum(), (plain_BU * real_BU).sum(), right_BU.sum()


def _in_parts(
  sums: Any, few: int, states_BUH: Float[Array, "B U H"], targets_BU: Int[Array, "B U"]
) -> Any:
  """Adds up `sums` over parts of `few` target positions, one after another."""
  missing = -targets_BU.shape[1] % few
  states_BUH = jnp.pad(states_BUH, ((0, 0), (0, missing), (0, 0)))
  targets_BU = jnp.pad(targets_BU, ((0, 0), (0, missing)))

  def divided(x: Array) -> Array:
    return x.reshape(x.shape[0], -1, few, *x.shape[2:]).swapaxes(0, 1)

  def body(total: Any, part: Any) -> tuple[Any, None]:
    return jax.tree.map(jnp.add, total, sums(*part)), None

  zero = (jnp.zeros((), jnp.float32),) * 3
  return jax.lax.scan(body, zero, (divided(states_BUH), divided(targets_BU)))[0]


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

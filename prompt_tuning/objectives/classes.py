"""Losses of a head, one an example: of a class, of any number of classes, of a number.

The targets are the feature `labels`: int32 [B] numbers of classes, float32 [B C] with 1
at each class that holds, or float32 [B]; in packed rows [B S ...], where a row may hold
fewer than S examples. Example r is that of `forward.head` [R C].
"""

import abc
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from prompt_tuning.core.forward import Forward, examples
from prompt_tuning.core.ids import Ids
from prompt_tuning.objectives.objective import Objective, Term


class _OfHead(Objective):
  """What the losses of a head share: a mean over examples."""

  def count(self, batch: Any, ids: Ids) -> Float[Array, ""]:
    """Examples."""
    return real_examples(batch, ids).sum().astype(jnp.float32)

  def __call__(self, forward: Forward) -> Term:
    batch, scores_RC = forward.batch, forward.head
    labels = batch["labels"]
    if "segment_ids" in batch:
      labels = labels.reshape(-1, *labels.shape[2:])
    real_R = forward.examples.astype(jnp.float32)
    loss_R, metrics = self.losses(scores_RC, labels)
    weight = self.count(batch, forward.ids)
    found = {name: ((x_R * real_R).sum(), weight) for name, x_R in metrics.items()}
    return Term((loss_R * real_R).sum(), weight, found)

  @abc.abstractmethod
  def losses(
    self, scores_RC: Float[Array, "R C"], labels: Array
  ) -> tuple[Float[Array, " R"], dict[str, Float[Array, " R"]]]:
    """Each example's loss, and metrics by name."""


@dataclasses.dataclass(frozen=True)
class CrossEntropy(_OfHead):
  """-log softmax(scores)[label]: one class of several.

  Attributes:
    label_smoothing: s; the target is 1 - s on the label and s spread over all C.
  """

  target: ClassVar[str] = "label"
  label_smoothing: float = 0.0

  def __post_init__(self) -> None:
    if not 0 <= self.label_smoothing < 1:
      raise ValueError(
        "`classes.CrossEntropy.label_smoothing` must be in [0, 1), got "
        f"{self.label_smoothing}."
      )

  def losses(self, scores_RC: Array, labels: Array) -> Any:
    log_RC = jax.nn.log_softmax(scores_RC)
    own_R = jnp.take_along_axis(log_RC, labels[:, None], 1)[:, 0]
    keep = 1 - self.label_smoothing
    loss_R = -(keep * own_R + self.label_smoothing * log_RC.mean(1))
    right_R = (scores_RC.argmax(1) == labels).astype(jnp.float32)
    return loss_R, {"class_accuracy": right_R}


@dataclasses.dataclass(frozen=True)
class BinaryCrossEntropy(_OfHead):
  """Mean over classes of -log sigmoid(x) where one holds, else -log(1 - sigmoid(x)).

  Of a target y in {0, 1} and a score x that is softplus(x) - y x.
  """

  target: ClassVar[str] = "labels"

  def losses(self, scores_RC: Array, labels: Array) -> Any:
    loss_R = (jax.nn.softplus(scores_RC) - labels * scores_RC).mean(1)
    right_RC = (scores_RC > 0) == (labels > 0.5)
    return loss_R, {"label_accuracy": right_RC.astype(jnp.float32).mean(1)}


@dataclasses.dataclass(frozen=True)
class SquaredError(_OfHead):
  """(score - number)^2, of a head with C = 1."""

  target: ClassVar[str] = "number"

  def losses(self, scores_RC: Array, labels: Array) -> Any:
    error_R = scores_RC[:, 0] - labels
    return jnp.square(error_R), {"absolute_error": jnp.abs(error_R)}


def real_examples(batch: Any, ids: Ids) -> Bool[Array, " R"]:
  """Where there is an example, and neither a row that fills up nor an empty segment."""
  segments = batch["labels"].shape[1] if "segment_ids" in batch else 1
  return examples(batch, ids, segments)

"""Terms over all labels of a task, each scored after the same input.

With log p_ku the log-probability of the u-th token of label k, n_k its tokens and g the
right label:

  normalised   -log softmax_k(sum_u log p_ku / n_k^a) at g
  hinge        sum over k != g of max(0, 1 - s_g + s_k), s the same scores
  perceptron   max_k s_k - s_g
  unlikelihood mean over the tokens of wrong labels of -log(1 - p_ku + 0.01)

Liu et al., 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than
In-Context Learning" (T-Few), whose loss is cross-entropy + normalised + unlikelihood;
the 0.01 is that of its released code. The encoder runs once a row.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from prompt_tuning.core.forward import Forward
from prompt_tuning.core.ids import Ids
from prompt_tuning.core.model import Batch
from prompt_tuning.decoding.search import log_prob
from prompt_tuning.objectives.objective import Objective, Term, Words

KINDS = ("normalised", "hinge", "perceptron", "unlikelihood")
_FLOOR = 0.01


@dataclasses.dataclass(frozen=True)
class Choices(Objective):
  """A term over the labels of a task; of examples whose target is none it is 0.

  Attributes:
    kind: see above. length_power: a, of the scores; 0 leaves sums.
    chunk: labels that run at once; 0 for all.
    labels: ids of the K labels, once it is bound to a task.
  """

  labelled: ClassVar[bool] = True
  kind: str = "normalised"
  length_power: float = 1.0
  chunk: int = 0
  labels: Sequence[Sequence[int]] | None = None

  def __post_init__(self) -> None:
    if self.kind not in KINDS:
      raise ValueError(f"`Choices.kind` must be one of {KINDS}, got {self.kind!r}.")
    if self.chunk < 0 or self.length_power < 0:
      raise ValueError(
        "`Choices.chunk` and `Choices.length_power` must be at least 0, got "
        f"{self.chunk} and {self.length_power}."
      )

  def bound(self, words: Words, labels: Sequence[str] | None) -> "Choices":
    if not labels:
      raise ValueError(
        "`OBJECTIVE` compares the labels of a task, but this one names none. Set "
        "LABELS, or lower cross-entropy alone."
      )
    rows = [(*map(int, words.encode(label)), words.end) for label in labels]
    return dataclasses.replace(self, labels=tuple(rows))

  def count(self, batch: Batch, ids: Ids) -> Float[Array, ""]:
    """Examples; of "unlikelihood" tokens of labels that are not the target."""
    right_BK = self._right(batch, ids)
    known_B = right_BK.any(-1)
    if self.kind != "unlikelihood":
      return known_B.sum().astype(jnp.float32)
    tokens_K = np.array([len(row) for row in self.labels])
    wrong_BK = ~right_BK & known_B[:, None]
    return (wrong_BK * tokens_K[None]).sum().astype(jnp.float32)

  def _ids(self, ids: Ids) -> Int[np.ndarray, "K U"]:
    width = max(map(len, self.labels))
    rows = [[*row, *[ids.pad] * (width - len(row))] for row in self.labels]
    return np.array(rows, np.int32)

  def _right(self, batch: Batch, ids: Ids) -> Bool[Array, "B K"]:
    """Which label each row's target is."""
    targets_BU, ids_KU = batch["targets"], self._ids(ids)
    wide = max(targets_BU.shape[1], ids_KU.shape[1])
    index_BU = jnp.broadcast_to(jnp.arange(wide), (len(targets_BU), wide))
    if "decoder_prompt_index" in batch:
      # Reserved positions stand in front.
      index_BU += (batch["decoder_prompt_index"] >= 0).sum(-1, keepdims=True)
    own_BU = jnp.take_along_axis(
      targets_BU, index_BU, axis=1, mode="fill", fill_value=ids.pad
    )
    room = (0, 0), (0, wide - ids_KU.shape[1])
    ids_KU = np.pad(ids_KU, room, constant_values=ids.pad)
    return (own_BU[:, None] == ids_KU[None]).all(-1)

  def __call__(self, forward: Forward) -> Term:
    if forward.model.segments > 1:
      raise ValueError(
        "`PACK_SEGMENTS` is above 1, but the objective scores labels after each row. "
        "Set PACK_SEGMENTS = 1."
      )
    right_BK = self._right(forward.batch, forward.ids)
    known_B = right_BK.any(-1)
    logs_BKU = self._logs(forward)
    real_KU = jnp.asarray(forward.ids.is_real(self._ids(forward.ids)))
    weight = self.count(forward.batch, forward.ids)
    if self.kind == "unlikelihood":
      lost_BKU = -jnp.log(1 - jnp.exp(logs_BKU) + _FLOOR)
      wrong_BK1 = (~right_BK & known_B[:, None])[..., None]
      total = jnp.where(wrong_BK1 & real_KU[None], lost_BKU, 0).sum()
    else:
      tokens_K = real_KU.sum(-1).astype(jnp.float32)
      scores_BK = jnp.where(real_KU[None], logs_BKU, 0).sum(-1)
      scores_BK = scores_BK / (tokens_K**self.length_power)[None]
      lost_B = self._lost(scores_BK, right_BK)
      total = jnp.where(known_B, lost_B, 0).sum()
    return Term(total, weight, {self.kind: (total, weight)})

  def _lost(
    self, scores_BK: Float[Array, "B K"], right_BK: Bool[Array, "B K"]
  ) -> Float[Array, " B"]:
    own_B = jnp.where(right_BK, scores_BK, 0).sum(-1)
    if self.kind == "normalised":
      return jax.nn.logsumexp(scores_BK, -1) - own_B
    if self.kind == "perceptron":
      return scores_BK.max(-1) - own_B
    margin_BK = jnp.maximum(0, 1 - own_B[:, None] + scores_BK)
    return jnp.where(right_BK, 0, margin_BK).sum(-1)

  def _logs(self, forward: Forward) -> Float[Array, "B K U"]:
    """Log-probabilities of the tokens of each label."""
    ids_KU = jnp.asarray(self._ids(forward.ids))
    B = forward.batch["inputs"].shape[0]
    forward.reading  # noqa: B018  Once, outside of the map.

    def one(ids_U: Array) -> Array:
      rows_BU = jnp.broadcast_to(ids_U, (B, len(ids_U)))
      return log_prob(forward.logits(forward.continued(rows_BU)), rows_BU)

    size = min(self.chunk, len(ids_KU)) or len(ids_KU)
    return jax.lax.map(one, ids_KU, batch_size=size).swapaxes(0, 1)

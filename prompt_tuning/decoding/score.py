"""Log-probabilities of given targets, and of each label of a list."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from prompt_tuning.core.ids import Ids
from prompt_tuning.core.model import Batch, Params, PromptedModel
from prompt_tuning.decoding.decode import refuse_packed
from prompt_tuning.decoding.search import log_prob


def score(model: PromptedModel, params: Params, batch: Batch) -> Float[Array, " B"]:
  """Log-probability of each row's `targets`, summed over its tokens."""
  refuse_packed(model, batch)
  ids = model.backbone.spec.ids
  return _total_log_prob(model.logits(params, batch), batch["targets"], ids)


def choice_scores(
  model: PromptedModel,
  params: Params,
  batch: Batch,
  labels: Int[Array, "*B K U"],
  normalize_by_length: bool = False,
  chunk: int = 0,
) -> Float[Array, "B K"]:
  """Log-probability of each label after each input; each input is read once.

  Args:
    model, params, batch: as for `generate`.
    labels: ids of K labels [K U], or of each row's own [B K U], closed by the end mark
      and padded (`Spec.ids`).
    normalize_by_length: divide by the label's tokens.
    chunk: labels run at once, static; 0 for all. The rest wait in a scan.
  """
  refuse_packed(model, batch)
  backbone, weights = model.backbone, params["backbone"]
  ids = backbone.spec.ids
  _check_labels(labels, backbone.spec.vocabulary, ids)
  reading, injection = model.read(params, batch)
  B = batch["inputs"].shape[0]

  def one(label_BU: Array) -> Array:
    # Mapped over labels, what was read stays one a row.
    states_BUH = backbone.continued(weights, reading, label_BU, injection)
    logits_BUV = backbone.logits(weights, states_BUH)
    total_B = _total_log_prob(logits_BUV, label_BU, ids)
    return total_B / ids.is_real(label_BU).sum(1) if normalize_by_length else total_B

  labels = jnp.asarray(labels)
  labels_BKU = jnp.broadcast_to(labels, (B, *labels.shape[-2:]))
  chunk = min(chunk, labels.shape[-2]) or labels.shape[-2]
  return jax.lax.map(one, labels_BKU.swapaxes(0, 1), batch_size=chunk).T


def _check_labels(labels: Any, vocabulary: int, ids: Ids) -> None:
  fix = "Make them with `outputs.choice.label_rows`."
  if jnp.ndim(labels) not in (2, 3) or 0 in jnp.shape(labels):
    raise ValueError(
      f"`labels` must be ids [K U] or [B K U], got shape {jnp.shape(labels)}. {fix}"
    )
  if isinstance(labels, jax.core.Tracer):
    return  # Values are known only outside of jit.
  labels = np.asarray(labels)
  words = np.where(labels == ids.pad, ids.end, labels)
  if words.min() < 0 or words.max() >= vocabulary:
    raise ValueError(
      f"`labels` must hold ids from 0 to {vocabulary - 1} (the vocabulary of the "
      f"backbone), got {words.min()} to {words.max()}. {fix}"
    )
  # An end mark alone says nothing, and a pad between tokens would not be scored.
  real = ids.is_real(labels)
  blank = (~real | (labels == ids.end)).all(-1)
  holed = (~real[..., :-1] & real[..., 1:]).any(-1)
  if blank.any() or holed.any():
    wrong = labels[blank | holed][0].tolist()
    raise ValueError(
      f"`labels` must be tokens, an end mark and {ids.pad} from there on, got {wrong}. "
      f"{fix}"
    )


def _total_log_prob(
  logits_BUV: Array, targets_BU: Array, ids: Ids
) -> Float[Array, " B"]:
  real_BU = ids.is_real(targets_BU)
  return jnp.where(real_BU, log_prob(logits_BUV, targets_BU), 0.0).sum(1)

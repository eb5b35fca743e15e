"""Scores of answers that name several labels."""

from collections.abc import Sequence

import numpy as np

from prompt_tuning.core.labels import parts


def f1_labels(
  targets: Sequence[str],
  predictions: Sequence[str],
  labels: Sequence[str],
  separator: str,
) -> dict[str, float]:
  """F1 over all decisions together, and its mean over the labels, in percent.

    micro = 2 sum_k h_k / sum_k (t_k + p_k);   macro = mean_k 2 h_k / (t_k + p_k)

  of t_k targets and p_k predictions that name label k, h_k of them both; 0 for a label
  that is never seen nor predicted. What is no label in a prediction is left out.
  """
  asked_NK = _held(targets, labels, separator)
  said_NK = _held(predictions, labels, separator)
  hits_K = (asked_NK & said_NK).sum(0)
  named_K = asked_NK.sum(0) + said_NK.sum(0)
  micro = 2 * hits_K.sum() / max(named_K.sum(), 1)
  macro = (2 * hits_K / np.maximum(named_K, 1)).mean()
  return {"f1_micro": 100.0 * float(micro), "f1_macro": 100.0 * float(macro)}


def _held(texts: Sequence[str], labels: Sequence[str], separator: str) -> np.ndarray:
  held = [set(parts(text, separator)) for text in texts]
  return np.array([[label in one for label in labels] for one in held])

"""Where a prompt that reads its input lies for each text: a map of two dimensions."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from prompt_tuning import answer
from prompt_tuning.core.places import KeysValues, Slots
from prompt_tuning.engine import evaluate

# Texts that are mapped, and numbers of a text's prompt that are kept.
MOST_TEXTS, MOST_NUMBERS = 400, 1 << 16


@dataclasses.dataclass(frozen=True)
class Map:
  """Attributes:
  points: of each text along the two directions of most variance [R 2].
  shares: of all variance that each direction has. names: of the texts' labels.
  ratio: variance between labels over that within; None for one label.
  """

  points: Float[np.ndarray, "R 2"]
  shares: tuple[float, float]
  names: Sequence[str]
  ratio: float | None


def of(session: answer.Session, records: Sequence[Any]) -> Map | None:
  """The map of a run's predictions.

  None for a prompt that reads no text, or whose vectors are made inside the layers.
  """
  module = session.model.prompt
  if module is None or not module.reads_text or module.external_width or module.tasks:
    return None
  kept = records[:: max(1, -(-len(records) // MOST_TEXTS))][:MOST_TEXTS]
  if len(kept) < 3:
    return None
  vectors = _vectors(session, [record["input"] for record in kept])
  if vectors is None:
    return None
  names = [str(record["target"]) for record in kept]
  points, shares = components(vectors)
  return Map(points, shares, names, between_within(vectors, names))


def _vectors(session: answer.Session, texts: Sequence[str]) -> np.ndarray | None:
  """What the prompt hands back for each text, flat [R X]."""
  found = answer.examples(session.loaded.vocabulary, texts)
  layout = session.layout(found, say=lambda *words: None)
  inject = jax.jit(lambda params, batch: _flat(session.model.inject(params, batch)))

  def run(batch: Any, numbers: Any) -> list[Any]:
    handed = inject(session.params, batch)
    if handed is None:
      return [None] * len(numbers)
    return list(np.asarray(handed, np.float32)[: len(numbers)])

  size = answer.few(len(found))
  rows = evaluate.in_order(run, found, layout, size, None, session.most(answer.ROWS))
  return None if any(row is None for row in rows) else np.stack(rows)


def _flat(injection: Any) -> Any:
  """The vectors of all places that hold some for each row; None without any."""
  held = [injection.get(name) for name in sorted(injection.places)]
  leaves = [
    jax.numpy.asarray(leaf, jax.numpy.float32)
    for place in held
    if isinstance(place, Slots | KeysValues)
    for leaf in jax.tree.leaves(place)
    if leaf.dtype != bool
  ]
  rows = max((leaf.shape[0] for leaf in leaves), default=1)
  flat = [leaf.reshape(rows, -1) for leaf in leaves if leaf.shape[0] == rows]
  if rows == 1 or not flat:
    return None
  whole = jax.numpy.concatenate(flat, axis=-1)
  return whole[:, :MOST_NUMBERS]


def components(
  values_RX: Float[np.ndarray, "R X"],
) -> tuple[Float[np.ndarray, "R 2"], tuple[float, float]]:
  """Points along the first two principal components, and their shares of variance."""
  centred = values_RX - values_RX.mean(0)[None]
  left, sizes, _ = np.linalg.svd(centred.astype(np.float64), full_matrices=False)
  if len(sizes) < 2:
    left, sizes = np.pad(left, ((0, 0), (0, 1))), np.pad(sizes, (0, 1))
  # The sign of a direction is arbitrary: its largest point shall be positive.
  signs = np.sign(left[np.abs(left[:, :2]).argmax(0), [0, 1]])
  points = left[:, :2] * (sizes[:2] * np.where(signs == 0, 1, signs))[None]
  total = max(float((sizes**2).sum()), 1e-30)
  first, second = (float(size**2 / total) for size in sizes[:2])
  return points, (first, second)


def between_within(
  values_RX: Float[np.ndarray, "R X"], names: Sequence[str]
) -> float | None:
  """Mean squared distance of labels' means to the whole mean, over that to their own.

  sum_k n_k |m_k - m|^2 / sum_i |x_i - m_k(i)|^2
  """
  labels = sorted(set(names))
  if len(labels) < 2:
    return None
  which = np.array([labels.index(name) for name in names])
  values = values_RX.astype(np.float64)
  mean, between, within = values.mean(0), 0.0, 0.0
  for k in range(len(labels)):
    own = values[which == k]
    between += len(own) * float(((own.mean(0) - mean) ** 2).sum())
    within += float(((own - own.mean(0)[None]) ** 2).sum())
  return between / within if within else None

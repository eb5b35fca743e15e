"""Where the token embeddings of a task lie: their mean and principal directions."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from prompt_tuning.procedures.measure import Probe


class Space(NamedTuple):
  """An affine subspace.

  Attributes:
    basis: orthonormal rows [r H]. mean: [H]. scale: standard deviation along each row
      [r], falling; 0 where nothing was left to find.
  """

  basis: np.ndarray
  mean: np.ndarray
  scale: np.ndarray


@dataclasses.dataclass(frozen=True)
class TokenMoments:
  """Gives "mean" [H] and "covariance" [H H] over all tokens of the inputs.

  Each occurrence counts; positions of prompts and pads do not. Attributes: split,
  limit: see `Measure`.
  """

  split: str = "train"
  limit: int | None = 2000

  def init(self, probe: Probe) -> Any:
    H = probe.model.backbone.spec.width
    zeros = {"sum": jnp.zeros(H), "square": jnp.zeros((H, H))}
    return {**zeros, "count": jnp.zeros(())}

  def add(
    self, total: Any, probe: Probe, batch: Any, weight_B: Float[Array, " B"]
  ) -> Any:
    context = probe.model.context(probe.params["backbone"], batch)
    weight_BT = context.mask * weight_B[:, None]
    states_BTH = context.embeddings.astype(jnp.float32)
    square_Hh = jnp.einsum("BT,BTH,BTh->Hh", weight_BT, states_BTH, states_BTH)
    return {
      "sum": total["sum"] + jnp.einsum("BT,BTH->H", weight_BT, states_BTH),
      "square": total["square"] + square_Hh,
      "count": total["count"] + weight_BT.sum(),
    }

  def finish(self, total: Any) -> Mapping[str, np.ndarray]:
    mean_H = np.asarray(total["sum"], np.float64) / total["count"]
    square_HH = np.asarray(total["square"], np.float64) / total["count"]
    return {"mean": mean_H, "covariance": square_HH - np.outer(mean_H, mean_H)}


def principal(
  found: Mapping[str, np.ndarray], rank: int, beside: Sequence[np.ndarray] = ()
) -> Space:
  """The directions of most variance, at right angles to other bases.

  The largest entry of each row is positive, so that two machines agree. Where fewer
  than `rank` directions are left, the last rows have a scale of 0.

  Args:
    found: of `TokenMoments`. beside: bases [r H] that stay out, with the mean too.
  """
  mean_H = np.asarray(found["mean"], np.float64)
  covariance_HH = np.asarray(found["covariance"], np.float64)
  away_HH = np.eye(len(mean_H))
  if beside:
    q_HX, s_X, _ = np.linalg.svd(np.concatenate(beside).T, full_matrices=False)
    q_HX = q_HX[:, s_X > 1e-6]
    away_HH = away_HH - q_HX @ q_HX.T
  values, columns = np.linalg.eigh(away_HH @ covariance_HH @ away_HH)
  values, basis = values[::-1][:rank], columns[:, ::-1][:, :rank].T
  peak = np.abs(basis).argmax(-1)
  basis = basis * np.sign(basis[np.arange(len(basis)), peak])[:, None]
  values = np.where(values > 1e-8 * max(values.max(), 1e-30), values, 0)
  return Space(basis, away_HH @ mean_H, np.sqrt(values))


def overlap(one: np.ndarray, other: np.ndarray) -> float:
  """The mean squared cosine of the angles between two subspaces [r H], in [0, 1]."""
  return float(np.square(one @ other.T).sum() / min(len(one), len(other)))

"""How alike two prompts are: by what they change in a frozen model, or as they stand.

  e = mean over examples of (decoder's first state with the prompt - without)
  similarity = cosine(e_one, e_other)

Zhong et al., 2022, "PANDA" (arXiv 2208.10160) weigh a transfer by such a cosine; the
exact states could not be read, so these are our choice. No labels are read but for the
position of the first target.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from prompt_tuning.core.forward import Forward
from prompt_tuning.procedures.measure import Probe

NAME = "embedding"


@dataclasses.dataclass(frozen=True)
class TaskEmbedding:
  """Gives "embedding" [H]. Attributes: split, limit: see `Measure`."""

  split: str = "train"
  limit: int | None = 1000

  def init(self, probe: Probe) -> Any:
    zeros_H = jnp.zeros(probe.model.backbone.spec.width, jnp.float32)
    return {NAME: zeros_H, "count": jnp.zeros((), jnp.float32)}

  def add(
    self, total: Any, probe: Probe, batch: Any, weight_B: Float[Array, " B"]
  ) -> Any:
    forward = Forward(probe.model, probe.params, batch)
    change_BH = forward.first - forward.unprompted().first
    added_H = jnp.einsum("B,BH->H", weight_B, change_BH.astype(jnp.float32))
    return {NAME: total[NAME] + added_H, "count": total["count"] + weight_B.sum()}

  def finish(self, total: Any) -> Mapping[str, np.ndarray]:
    return {NAME: total[NAME] / total["count"]}


def cosine(one: np.ndarray, other: np.ndarray) -> float:
  """The cosine of two arrays of one shape, in [-1, 1]; 0 where one is all zero."""
  one, other = (np.asarray(x, np.float64).ravel() for x in (one, other))
  size = float(np.linalg.norm(one) * np.linalg.norm(other))
  return float(np.clip(one @ other / size, -1, 1)) if size else 0.0


def rows(table: np.ndarray) -> np.ndarray:
  """The mean row [H] of a prompt's table [... P H]: what `cosine` may compare too."""
  return np.asarray(table, np.float64).reshape(-1, table.shape[-1]).mean(0)

"""What units of the backbone do for an answer: sum_x sum_t h dP(y | x) / dh.

A factor of 1 at a unit's activation h has the gradient sum_t h_t dP / dh_t, over all
positions t: so factors that are frozen at 1 ("encoder.mlp.hidden.scale") are masks, and
their gradient is the attribution. P(y | x) = exp(-loss of the example), the mean over
its target tokens. Yang et al., 2024, "SKIP" (arXiv 2404.11916), whose own formula could
not be read; the sum over positions, where relatives take the largest, is our choice.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from prompt_tuning.core import trainable as branches
from prompt_tuning.procedures.measure import Probe, per_example

KINDS = ("p", "logp")


@dataclasses.dataclass(frozen=True)
class Attribution:
  """Gives, by the path of each mask, the mean over examples [G P J].

  Attributes:
    masks: paths of factors. of: "p", or "logp" where probabilities are tiny.
    magnitude: add up absolute values, example by example.
    split, limit: see `Measure`.
  """

  masks: Sequence[str]
  of: str = "p"
  magnitude: bool = False
  split: str = "train"
  limit: int | None = 1000

  def __post_init__(self) -> None:
    if self.of not in KINDS:
      raise ValueError(f"`Attribution.of` is {self.of!r}; it must be one of {KINDS}.")

  def init(self, probe: Probe) -> Any:
    flat = branches.flatten(probe.params)
    missing = [path for path in self.masks if path not in flat]
    if missing or not self.masks:
      raise ValueError(
        f"`Attribution.masks` is {list(self.masks)}, of which this prompt lacks "
        f"{missing or 'all'}. Name the leaves of prompts at places that end in "
        "'hidden.scale'."
      )
    zeros = {path: jnp.zeros(flat[path].shape, jnp.float32) for path in self.masks}
    return {"count": jnp.zeros((), jnp.float32), "masks": zeros}

  def add(
    self, total: Any, probe: Probe, batch: Any, weight_B: Float[Array, " B"]
  ) -> Any:
    flat = branches.flatten(probe.params)
    held = {path: jnp.asarray(flat[path], jnp.float32) for path in self.masks}

    def inner(masks: Any) -> Any:
      return branches.unflatten({**flat, **masks})

    change = per_example(probe, inner, held, batch, self._answer)

    def summed(old: Array, change_BGPJ: Array) -> Array:
      each = jnp.abs(change_BGPJ) if self.magnitude else change_BGPJ
      return old + jnp.einsum("B,B...->...", weight_B, each)

    masks = jax.tree.map(summed, total["masks"], change)
    return {"count": total["count"] + weight_B.sum(), "masks": masks}

  def _answer(self, loss: Array) -> Array:
    return jnp.exp(-loss) if self.of == "p" else -loss

  def finish(self, total: Any) -> Mapping[str, np.ndarray]:
    return {path: value / total["count"] for path, value in total["masks"].items()}

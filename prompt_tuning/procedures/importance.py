"""How much each piece of a prompt matters: E_x |dL(x) / dmask|, by example.

The gradient of a mask at 1 is the inner product of a piece with its own gradient,
dL/dmask[p, k] = <prompt[p, k], dL/dprompt[p, k]>, and that of a whole position is the
sum over its pieces (Ma et al., 2022, "XPrompt"). Absolute values are taken example by
example: the mean of the batch's gradient would let examples cancel each other.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from prompt_tuning.core import trainable as branches
from prompt_tuning.procedures.measure import Probe, per_example


@dataclasses.dataclass(frozen=True)
class Importance:
  """Gives "pieces" [P K] and "positions" [P], and the mask [P K] that it stood at.

  Attributes:
    mask: path of the mask. split, limit: see `Measure`.
  """

  mask: str = "prompt/transforms_0/mask"
  split: str = "train"
  limit: int | None = None

  def init(self, probe: Probe) -> Any:
    mask_PK = self._held(probe.params)
    zero = jnp.zeros((), jnp.float32)
    positions = jnp.zeros(mask_PK.shape[:1], jnp.float32)
    pieces = jnp.zeros(mask_PK.shape, jnp.float32)
    held = jnp.asarray(mask_PK, jnp.float32)
    return {"pieces": pieces, "positions": positions, "count": zero, "mask": held}

  def _held(self, params: Any) -> Any:
    flat = branches.flatten(params)
    if self.mask not in flat:
      raise ValueError(
        f"`Importance.mask` is {self.mask!r}, which this prompt does not have. Give it "
        "the transform `mask.Mask`, or name its leaf."
      )
    return flat[self.mask]

  def add(
    self, total: Any, probe: Probe, batch: Any, weight_B: Float[Array, " B"]
  ) -> Any:
    flat = branches.flatten(probe.params)

    def inner(mask_PK: Any) -> Any:
      return branches.unflatten({**flat, self.mask: mask_PK})

    mask_PK = jnp.asarray(flat[self.mask], jnp.float32)
    change_BPK = per_example(probe, inner, mask_PK, batch)
    whole_BP = (change_BPK * mask_PK[None]).sum(-1)
    return {
      "pieces": total["pieces"] + jnp.einsum("B,BPK->PK", weight_B, abs(change_BPK)),
      "positions": total["positions"] + jnp.einsum("B,BP->P", weight_B, abs(whole_BP)),
      "count": total["count"] + weight_B.sum(),
      "mask": total["mask"],
    }

  def finish(self, total: Any) -> Mapping[str, np.ndarray]:
    return {
      "pieces": total["pieces"] / total["count"],
      "positions": total["positions"] / total["count"],
      "mask": total["mask"],
    }

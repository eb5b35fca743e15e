"""Holding a prompt near the embeddings of a text: mean_p |prompt_p - E[text_p]|^2.

Khashabi et al., 2022, "Prompt Waywardness: The Curious Case of Discretized
Interpretation of Continuous Prompts". T5's embeddings are long, so that the weight of
the term hangs on the backbone.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from prompt_tuning.core.forward import Forward
from prompt_tuning.core.ids import Ids
from prompt_tuning.core.model import Batch
from prompt_tuning.objectives.objective import Objective, Term, Words


@dataclasses.dataclass(frozen=True)
class NearText(Objective):
  """A mean over examples of one number; of a prompt at "encoder.input".

  Attributes:
    text: as many pieces as the prompt has positions, or more; the rest is left out.
    ids: its pieces, once it is bound to a vocabulary.
  """

  text: str
  ids: Sequence[int] | None = None

  def bound(self, words: Words, labels: Sequence[str] | None) -> "NearText":
    ids = tuple(int(piece) for piece in words.encode(self.text))
    return dataclasses.replace(self, ids=ids)

  def count(self, batch: Batch, ids: Ids) -> Float[Array, ""]:
    """Rows."""
    return jnp.float32(len(batch["inputs"]))

  def __call__(self, forward: Forward) -> Term:
    slots = forward.slots
    if slots is None:
      raise ValueError(
        "`OBJECTIVE` holds a prompt at encoder.input near a text, but there is none. "
        "Use a method that has one."
      )
    P = slots.vectors.shape[1]
    if len(self.ids) < P:
      raise ValueError(
        f"`PROMPT_TEXT` has {len(self.ids)} pieces, but PROMPT_LENGTH is {P}. Give a "
        "longer text, or lower PROMPT_LENGTH."
      )
    weights = jax.lax.stop_gradient(forward.params["backbone"])
    text_PH = forward.model.backbone.embed(weights, jnp.asarray(self.ids[:P]))
    apart_RP = jnp.square(slots.vectors - text_PH[None]).sum(-1)
    weight = self.count(forward.batch, forward.ids)
    total = apart_RP.mean() * weight
    return Term(total, weight, {"near_text": (total, weight)})

"""What a prompt's vectors are, position by position, and which words they are near."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from prompt_tuning.core.model import PromptedModel
from prompt_tuning.core.places import Slots
from prompt_tuning.engine.listed import Rows


def vectors(product: Any, loaded: Any, batch: Any = None) -> dict[str, np.ndarray]:
  """Place -> [R P H] of the vectors that a prompt puts among embeddings.

  Args:
    product: the prompt. loaded: its backbone.
    batch: features of R rows that it reads; None for a prompt that reads none.

  Raises:
    ValueError: for a prompt of another backbone, or one that reads what is not there.
  """
  if product.module is None:
    raise ValueError("Nothing here is a prompt: no virtual positions were trained.")
  if loaded is None:
    raise ValueError(
      "The prompt does not know its model here: give model=, what `load_model` returns."
    )
  product.check(loaded.fingerprint, loaded.backbone.spec.width)
  if batch is None and product.module.reads_input:
    raise ValueError(
      "This prompt reads its input, so that its vectors differ from text to text. "
      "`python -m prompt_tuning.inspect RUN` maps those of a run's predictions."
    )
  model = PromptedModel(loaded.backbone, product.module)
  if batch is None:
    end = loaded.backbone.spec.ids.end
    batch = {"inputs": jnp.full((1, max(4, sum(model.lengths.values()))), end)}
  found = model.inject(product.params(loaded.params), batch)
  places = {name: found.get(name) for name in sorted(found.places)}
  return {
    name: np.asarray(place.vectors, np.float32)
    for name, place in places.items()
    if isinstance(place, Slots)
  }


def tokens(product: Any, loaded: Any, k: int) -> Rows:
  """A row a position: its place, its length (L2) and its k nearest tokens by cosine.

  Raises:
    ValueError: see `vectors`; also for a prompt that acts elsewhere than among
      embeddings, and a k that is no whole number of tokens.
  """
  found = vectors(product, loaded)
  if not found:
    raise ValueError(
      "This prompt acts inside the layers, where no words stand to compare it with."
    )
  table_VH = np.asarray(loaded.backbone.table(loaded.params), np.float32)
  most = table_VH.shape[0]
  if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= most:
    raise ValueError(f"`k` is {k!r}; it must be a whole number from 1 to {most}.")
  lengths_V = np.maximum(np.linalg.norm(table_VH, axis=-1), 1e-12)
  rows = Rows()
  for place, vectors_RPH in found.items():
    for position, vector_H in enumerate(vectors_RPH[0]):
      length = float(np.linalg.norm(vector_H))
      cosines_V = table_VH @ vector_H / (lengths_V * max(length, 1e-12))
      best = np.argsort(-cosines_V)[:k]
      named = [f"{word(loaded.vocabulary, int(i))} {cosines_V[i]:.2f}" for i in best]
      rows.append(
        {"place": place, "position": position, "norm": length, "nearest": named}
      )
  return rows


def word(vocabulary: Any, number: int) -> str:
  """The text of a token, or its number in brackets where it has none."""
  return vocabulary.decode([number]).strip() or f"<{number}>"

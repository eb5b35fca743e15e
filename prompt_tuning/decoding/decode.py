"""Predictions of a prompted model: read once, then run a loop over the cache."""

from typing import Any

import jax
from jaxtyping import Array

from prompt_tuning.core.model import Batch, Params, PromptedModel
from prompt_tuning.decoding.beam import beam_search
from prompt_tuning.decoding.search import Cache, Decoded, Step, greedy, sample


def generate(
  model: PromptedModel, params: Params, batch: Batch, decoder: Any, key: Any = None
) -> Decoded:
  """Decodes a batch of features: inputs are read once, answers written by the token.

  All of it can be jitted, `model` and `decoder` closed over or static.

  Args:
    model, params: what to decode with.
    batch: `inputs` and what else the backbone and the prompt read; one example a row.
    decoder: `outputs.text.Greedy`, `Sample` or `Beam`.
    key: noise for `Sample`: one key, or one a row [B]; None for that of its seed, which
      is the same in every batch.

  Returns:
    ids [B U] and their log-probabilities [B]; for `Beam` [B K U] and [B K], best first.
  """
  if decoder.loop not in ("greedy", "sample", "beam_search"):
    raise ValueError(
      "`decoder.loop` must be 'greedy', 'sample' or 'beam_search', got "
      f"{decoder.loop!r}. Bind `text.Greedy`, `text.Sample` or `text.Beam`."
    )
  refuse_packed(model, batch)
  backbone, weights = model.backbone, params["backbone"]
  reading, injection = model.read(params, batch)
  # The last token is never fed back, so its keys and values need no place.
  first_BV, memory, cache = backbone.prefill(
    weights, reading, decoder.steps - 1, injection
  )

  def step(ids_B: Array, cache: Cache, index: Array) -> tuple[Array, Cache]:
    return backbone.extend(weights, ids_B, memory, cache, index)

  ids = backbone.spec.ids
  if decoder.loop == "greedy":
    return greedy(step, cache, first_BV, decoder.steps, ids)
  if decoder.loop == "sample":
    key = jax.random.key(decoder.seed) if key is None else key
    filters = decoder.temperature, decoder.top_k, decoder.top_p
    return sample(step, cache, first_BV, decoder.steps, key, *filters, ids)
  axis, K = backbone.cache_axis, decoder.beams
  penalty = decoder.alpha, axis, decoder.length_penalty, ids
  step = _beside(step, K, axis)
  return beam_search(step, cache, first_BV, decoder.steps, K, *penalty)


def _beside(step: Step, K: int, axis: int) -> Step:
  """A step of B rows as one of B * K rows.

  Mapping over the K beams of a row lets all of them read one copy of its encoding's
  keys and values; repeating rows would need K.
  """

  def split(x: Array, axis: int) -> Array:
    return x.reshape(*x.shape[:axis], -1, K, *x.shape[axis + 1 :])

  def join(x: Array, axis: int) -> Array:
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])

  mapped = jax.vmap(step, (1, axis + 1, None), (1, axis + 1))

  def step_all(ids_X: Array, cache: Cache, index: Array) -> tuple[Array, Cache]:
    cache = jax.tree.map(lambda x: split(x, axis), cache)
    logits_BKV, cache = mapped(split(ids_X, 0), cache, index)
    return join(logits_BKV, 0), jax.tree.map(lambda x: join(x, axis), cache)

  return step_all


def refuse_packed(model: PromptedModel, batch: Batch) -> None:
  """Raises ValueError for packed rows: predictions are made one example a row."""
  if model.segments > 1 or "segment_ids" in batch:
    raise ValueError(
      f"`batch` must hold one example a row, got packed rows (model.segments = "
      f"{model.segments}). Turn packing off to decode or score."
    )

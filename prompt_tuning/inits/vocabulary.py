"""Prompt rows that start as rows of the frozen token table.

Lester et al., 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning",
section 2.2: sampled vocabulary, class labels; and any given text.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from prompt_tuning.core.context import Spec
from prompt_tuning.core.prompt import Initializer

# Ids 0, 1 and 2 are padding, end mark and unknown: no word has them.
FIRST_WORD = 3


def sampled(population: int = 5000, first: int = FIRST_WORD) -> Initializer:
  """Rows of distinct tokens among the `population` most frequent ones.

  SentencePiece orders pieces by frequency, so these are ids from `first` on. Rows
  repeat only where more are asked for than there are.
  """
  if population < 1:
    raise ValueError(
      f"`vocabulary.sampled.population` must be at least 1, got {population}."
    )

  def draw(key: Any, shape: tuple[int, ...], spec: Spec) -> jax.Array:
    table_VH = _table(spec)
    _check_width(shape, spec)
    count = math.prod(shape[:-1])
    V = table_VH.shape[0]
    if first >= V:
      raise ValueError(
        f"`vocabulary.sampled.first` is {first}, but the table has {V} rows."
      )
    several = min(population, V - first)
    ids = jax.random.choice(key, several, (count,), replace=count > several) + first
    return jnp.asarray(table_VH, jnp.float32)[ids].reshape(shape)

  return draw


def class_labels(labels: Sequence[str], fallback: Initializer) -> Initializer:
  """Row i is the mean embedding of label i's pieces; `fallback` draws the rest."""
  if not labels:
    raise ValueError("`vocabulary.class_labels.labels` is empty; give the labels.")

  def draw(key: Any, shape: tuple[int, ...], spec: Spec) -> jax.Array:
    table_VH = _table(spec)
    rows = [jnp.mean(table_VH[jnp.asarray(_ids(spec, text))], 0) for text in labels]
    return _first_rows(jnp.stack(rows), fallback, key, shape, spec)

  return draw


def text(words: str, fallback: Initializer) -> Initializer:
  """The embeddings of a text's pieces, in order; `fallback` draws the rest."""
  if not words.strip():
    raise ValueError("`vocabulary.text.words` is empty; give the text.")

  def draw(key: Any, shape: tuple[int, ...], spec: Spec) -> jax.Array:
    rows = _table(spec)[jnp.asarray(_ids(spec, words))]
    return _first_rows(rows, fallback, key, shape, spec)

  return draw


def repeated(texts: Sequence[str]) -> Initializer:
  """Tables [K ... P H]: the embeddings of text k's pieces, again and again, cut at P.

  Raises:
    ValueError: unless there is one text that says something for each table.
  """
  listed = isinstance(texts, (list, tuple)) and texts
  if not listed or not all(isinstance(x, str) and x.strip() for x in texts):
    raise ValueError(
      f"`vocabulary.repeated.texts` is {texts!r}; give a list of texts, one for each "
      "table, none of them empty."
    )

  def draw(key: Any, shape: tuple[int, ...], spec: Spec) -> jax.Array:
    del key
    table_VH = _table(spec)
    _check_width(shape, spec)
    if len(texts) != shape[0]:
      raise ValueError(
        f"`vocabulary.repeated.texts` holds {len(texts)} texts for {shape[0]} tables "
        "(TASKS). Give one for each."
      )
    P = shape[-2]
    ids_KP = jnp.stack([jnp.resize(jnp.asarray(_ids(spec, x)), P) for x in texts])
    rows_KPH = jnp.asarray(table_VH, jnp.float32)[ids_KP]
    middle = (1,) * (len(shape) - 3)
    return jnp.broadcast_to(rows_KPH.reshape(shape[0], *middle, P, shape[-1]), shape)

  return draw


def _first_rows(
  rows_XH: jax.Array, fallback: Initializer, key: Any, shape: Any, spec: Spec
) -> jax.Array:
  _check_width(shape, spec)
  P = shape[-2]
  if rows_XH.shape[0] > P:
    logging.warning(
      "%d rows were given for a prompt of length %d; the first %d are used.",
      rows_XH.shape[0],
      P,
      P,
    )
  rows_XH = jnp.asarray(rows_XH[:P], jnp.float32)
  return fallback(key, shape, spec).at[..., : rows_XH.shape[0], :].set(rows_XH)


def _ids(spec: Spec, words: str) -> list[int]:
  if spec.encode is None:
    # Shapes alone are asked for (jax.eval_shape): any id has the right shape.
    return [FIRST_WORD]
  ids = [int(piece) for piece in spec.encode(words)]
  if not ids:
    raise ValueError(f"The text {words!r} has no pieces in the vocabulary.")
  return ids


def _table(spec: Spec) -> jax.Array:
  if spec.table is None:
    raise ValueError("An initialiser of token rows was called without a token table.")
  return spec.table


def _check_width(shape: tuple[int, ...], spec: Spec) -> None:
  if shape[-1] != spec.width:
    raise ValueError(
      f"Token rows have width {spec.width}, but the site asks for {shape[-1]}. Use "
      "`uniform.symmetric` here."
    )

"""Decoding loops: greedy and sampling, and what every loop shares.

A loop knows no model. It asks `step(ids_B, cache, index) -> (logits_BV, cache)`, where
`ids_B` are the targets at place `index` (from 0) and the logits are for the place after
it. `first_BV` are the logits for place 0. Ids come back with pads after the end mark.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from prompt_tuning.core.ids import MARKS, Ids

Cache = Any
Step = Callable[[Array, Cache, Array], tuple[Array, Cache]]
Decoded = tuple[Int[Array, "B *K U"], Float[Array, "B *K"]]


def greedy(
  step: Step,
  cache: Cache,
  first_BV: Float[Array, "B V"],
  steps: int,
  marks: Ids = MARKS,
) -> tuple[Int[Array, "B U"], Float[Array, " B"]]:
  """The likeliest token at each of `steps` places: ids and their log-probability."""

  def pick(logits_BV, index):
    return jnp.argmax(logits_BV, -1)

  return _rows(step, cache, first_BV, steps, pick, marks)


def sample(
  step: Step,
  cache: Cache,
  first_BV: Float[Array, "B V"],
  steps: int,
  key: Any,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
  marks: Ids = MARKS,
) -> tuple[Int[Array, "B U"], Float[Array, " B"]]:
  """A token drawn at each place: ids and their log-probability unfiltered.

  Args:
    step, cache, first_BV, steps: see the head of the file.
    key: one key, or one a row [B] where a row's draw must not depend on its place.
    temperature, top_k, top_p: see `candidates`. marks: what ends and pads.
  """
  if key.ndim == 0:
    key = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(first_BV.shape[0]))

  def draw(key, logits_C, ids_C, index):
    return ids_C[jax.random.categorical(jax.random.fold_in(key, index), logits_C)]

  def pick(logits_BV, index):
    kept = candidates(logits_BV, temperature, top_k, top_p)
    return jax.vmap(draw, (0, 0, 0, None))(key, *kept, index)

  return _rows(step, cache, first_BV, steps, pick, marks)


def candidates(
  logits_BV: Float[Array, "B V"], temperature: float, top_k: int, top_p: float
) -> tuple[Float[Array, "B C"], Int[Array, "B C"]]:
  """What may be drawn: logits, -inf where ruled out, and the ids they stand for.

  The temperature divides first; `top_k` (0 for all) keeps the k likeliest; `top_p` (1
  for all) keeps, of those and their probabilities made to sum to 1, the fewest that
  reach p.
  """
  scaled_BV = logits_BV / temperature
  V = logits_BV.shape[-1]
  if not top_k and top_p >= 1:
    return scaled_BV, jnp.broadcast_to(jnp.arange(V), logits_BV.shape)
  scaled_BC, ids_BC = jax.lax.top_k(scaled_BV, min(top_k or V, V))
  if top_p < 1:
    probability_BC = jax.nn.softmax(scaled_BC)
    before_BC = jnp.cumsum(probability_BC, -1) - probability_BC
    scaled_BC = jnp.where(before_BC < top_p, scaled_BC, -jnp.inf)
  return scaled_BC, ids_BC


class _Rows(NamedTuple):
  index: Int[Array, ""]
  ids_BU: Int[Array, "B U"]
  log_probs_B: Float[Array, " B"]
  ended_B: Bool[Array, " B"]
  cache: Cache


def _rows(step, cache, first_BV, steps, pick, marks):
  """Writes one sequence a row until all have ended or `steps` are written."""

  def write(state: _Rows, logits_BV: Array) -> _Rows:
    chosen_B = pick(logits_BV, state.index).astype(jnp.int32)
    ids_B = jnp.where(state.ended_B, marks.pad, chosen_B)
    gain_B = jnp.where(state.ended_B, 0.0, log_prob(logits_BV, chosen_B))
    return state._replace(
      index=state.index + 1,
      ids_BU=put(state.ids_BU, ids_B, state.index),
      log_probs_B=state.log_probs_B + gain_B,
      ended_B=state.ended_B | (ids_B == marks.end),
    )

  def body(state: _Rows) -> _Rows:
    last = state.index - 1
    logits_BV, cache = step(at(state.ids_BU, last), state.cache, last)
    return write(state._replace(cache=cache), logits_BV)

  def unfinished(state: _Rows) -> Array:
    return (state.index < steps) & ~state.ended_B.all()

  B = first_BV.shape[0]
  state = _Rows(
    index=jnp.int32(0),
    ids_BU=jnp.full((B, steps), marks.pad, jnp.int32),
    log_probs_B=jnp.zeros(B),
    ended_B=jnp.zeros(B, bool),
    cache=cache,
  )
  state = jax.lax.while_loop(unfinished, body, write(state, first_BV))
  return state.ids_BU, state.log_probs_B


def log_prob(logits: Float[Array, "*X V"], ids: Int[Array, "*X"]) -> Array:
  """Log-probability of given ids."""
  chosen = jnp.take_along_axis(logits, ids[..., None], -1)[..., 0]
  return chosen - jax.nn.logsumexp(logits, -1)


def at(ids: Int[Array, "*B U"], index: Int[Array, ""]) -> Int[Array, "*B"]:
  """The ids at one place of each row."""
  return jax.lax.dynamic_index_in_dim(ids, index, ids.ndim - 1, keepdims=False)


def put(ids: Array, new: Array, index: Array) -> Int[Array, "*B U"]:
  """Writes ids at one place of each row."""
  return jax.lax.dynamic_update_index_in_dim(ids, new, index, ids.ndim - 1)


def gather(tree: Any, places_BC: Int[Array, "B C"]) -> Any:
  """Row by row, the entries of axis 1 at `places_BC`."""
  take = jax.vmap(lambda x, places_C: jnp.take(x, places_C, axis=0))
  return jax.tree.map(lambda x: take(x, places_BC), tree)


def reorder(cache: Cache, parents_BK: Int[Array, "B K"], axis: int) -> Cache:
  """Each beam's cache becomes its parent's; rows never mix."""
  B, K = parents_BK.shape

  def move(x: Array) -> Array:
    split = x.reshape(*x.shape[:axis], B, K, *x.shape[axis + 1 :])
    take = jax.vmap(lambda x, places_K: jnp.take(x, places_K, axis), (axis, 0), axis)
    return take(split, parents_BK).reshape(x.shape)

  return jax.tree.map(move, cache)

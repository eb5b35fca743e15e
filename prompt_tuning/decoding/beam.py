"""Beam search under two rules of length.

See `decoding.search` for what a step is.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from prompt_tuning.core.ids import MARKS, Ids
from prompt_tuning.decoding.search import (
  Cache,
  Step,
  at,
  gather,
  put,
  reorder,
)


def length_penalty(form: str, alpha: float, length: Any) -> Array:
  """What divides the log-probability of `length` tokens, the end mark counted.

  "brevity" is ((5 + length) / 6)^alpha (Wu et al., 2016, "Google's Neural Machine
  Translation System", used by T5X); "power" is length^alpha (Hugging Face).
  """
  length = jnp.asarray(length, jnp.float32)
  if form == "brevity":
    return ((5 + length) / 6) ** alpha
  if form == "power":
    return length**alpha
  raise ValueError(
    f"`length_penalty` must be 'brevity' (T5X) or 'power' (Hugging Face), got {form!r}."
  )


def beam_search(
  step: Step,
  cache: Cache,
  first_BV: Float[Array, "B V"],
  steps: int,
  beams: int = 4,
  alpha: float = 0.6,
  cache_axis: int = 0,
  length_penalty: str = "brevity",
  marks: Ids = MARKS,
) -> tuple[Int[Array, "B K U"], Float[Array, "B K"]]:
  """K sequences a row, best score first, and their log-probabilities (not divided).

  Live and ended sequences are kept apart, K of each. A step takes the 2K likeliest
  continuations of the live ones: those that end compete for the ended places by score,
  the likeliest K of the rest live on. Two sets of rules:

  * "brevity", T5X's: all 2K may end; a row is done once no live sequence can, whatever
    it adds, outscore the worst of K ended ones; live ones count only where too few
    ended (they then follow the ended ones).
  * "power", Hugging Face's (`early_stopping=False`): only the likeliest K may end; a
    row is done once no live sequence, as it stands, outscores the worst of K ended
    ones; at the last step all K count as ended.

  Args:
    step: called with rows B * K, the K of a row side by side.
    cache: of B rows along `cache_axis`; repeated here, then gathered as beams move.
    first_BV, steps, marks: see `search.sample`.
    beams: K. alpha, length_penalty: see `length_penalty`; alpha >= 0.

  Where fewer than K sequences exist at all, the log-probability of the rest is -inf.
  """
  search = _Search(steps, beams, alpha, length_penalty, marks)
  (B, V), K = first_BV.shape, beams
  cache = jax.tree.map(lambda x: jnp.repeat(x, K, axis=cache_axis), cache)

  def body(state: _Beams) -> _Beams:
    last = state.index - 1
    cache = reorder(state.cache, state.parents_BK, cache_axis)
    ids_X = at(state.live_BKU, last).reshape(B * K)
    logits_XV, cache = step(ids_X, cache, last)
    return search.advance(state._replace(cache=cache), logits_XV.reshape(B, K, V))

  def unfinished(state: _Beams) -> Array:
    return (state.index < steps) & ~state.done_B.all()

  first_BKV = jnp.broadcast_to(first_BV[:, None], (B, K, V))
  state = search.advance(search.start(B, cache), first_BKV)
  return search.ranked(jax.lax.while_loop(unfinished, body, state))


class _Beams(NamedTuple):
  """-inf marks a place that holds no sequence."""

  index: Int[Array, ""]
  live_BKU: Int[Array, "B K U"]
  live_log_probs_BK: Float[Array, "B K"]
  ended_BKU: Int[Array, "B K U"]
  ended_log_probs_BK: Float[Array, "B K"]
  ended_scores_BK: Float[Array, "B K"]
  parents_BK: Int[Array, "B K"]
  done_B: Bool[Array, " B"]
  cache: Cache


@dataclasses.dataclass(frozen=True)
class _Search:
  """The rules of `beam_search`."""

  steps: int
  beams: int
  alpha: float
  form: str
  marks: Ids

  def score(self, log_probs: Array, length: Any) -> Array:
    return log_probs / length_penalty(self.form, self.alpha, length)

  def start(self, B: int, cache: Cache) -> _Beams:
    shape = B, self.beams, self.steps
    empty_BKU = jnp.full(shape, self.marks.pad, jnp.int32)
    none_BK = jnp.full((B, self.beams), -jnp.inf)
    return _Beams(
      index=jnp.int32(0),
      live_BKU=empty_BKU,
      live_log_probs_BK=none_BK.at[:, 0].set(0.0),
      ended_BKU=empty_BKU,
      ended_log_probs_BK=none_BK,
      ended_scores_BK=none_BK,
      parents_BK=jnp.zeros((B, self.beams), jnp.int32),
      done_B=jnp.zeros(B, bool),
      cache=cache,
    )

  def advance(self, state: _Beams, logits_BKV: Array) -> _Beams:
    """Adds one token to every live sequence."""
    B, K, V = logits_BKV.shape
    grown_BKV = state.live_log_probs_BK[..., None] + jax.nn.log_softmax(logits_BKV)
    # At most K of the 2K best can end, so that K are left to live on.
    log_probs_BC, places_BC = jax.lax.top_k(grown_BKV.reshape(B, K * V), 2 * K)
    parents_BC, tokens_BC = places_BC // V, places_BC % V
    ids_BCU = put(gather(state.live_BKU, parents_BC), tokens_BC, state.index)
    ends_BC = tokens_BC == self.marks.end
    alive_BC = jnp.where(ends_BC, -jnp.inf, log_probs_BC)
    live_BK, kept_BK = jax.lax.top_k(alive_BC, K)
    state = self._close(state, ids_BCU, log_probs_BC, ends_BC)
    state = state._replace(
      index=state.index + 1,
      live_BKU=gather(ids_BCU, kept_BK),
      live_log_probs_BK=live_BK,
      parents_BK=gather(parents_BC, kept_BK),
    )
    return state._replace(done_B=state.done_B | self._hopeless(state))

  def _close(self, state, ids_BCU, log_probs_BC, ends_BC) -> _Beams:
    """Lets the sequences that just ended compete for the K ended places."""
    length = state.index + 1
    if self.form == "power":
      ends_BC |= length == self.steps
      ends_BC &= jnp.arange(ends_BC.shape[1])[None] < self.beams
    scores_BC = self.score(log_probs_BC, length)
    scores_BC = jnp.where(ends_BC & ~state.done_B[:, None], scores_BC, -jnp.inf)
    scores_BX = jnp.concatenate([state.ended_scores_BK, scores_BC], 1)
    log_probs_BC = jnp.where(ends_BC, log_probs_BC, -jnp.inf)
    log_probs_BX = jnp.concatenate([state.ended_log_probs_BK, log_probs_BC], 1)
    ids_BXU = jnp.concatenate([state.ended_BKU, ids_BCU], 1)
    scores_BK, kept_BK = jax.lax.top_k(scores_BX, self.beams)
    return state._replace(
      ended_BKU=gather(ids_BXU, kept_BK),
      ended_log_probs_BK=gather(log_probs_BX, kept_BK),
      ended_scores_BK=scores_BK,
    )

  def _hopeless(self, state: _Beams) -> Bool[Array, " B"]:
    """Rows whose ended sequences no live one can displace."""
    length = state.index if self.form == "power" else self.steps
    hope_B = self.score(state.live_log_probs_BK.max(1), length)
    return hope_B <= state.ended_scores_BK.min(1)

  def ranked(self, state: _Beams) -> tuple[Array, Array]:
    """The best K: ended ones by score, then live ones by log-probability."""
    live_BK = state.live_log_probs_BK
    scores_BX = jnp.concatenate([state.ended_scores_BK, live_BK], 1)
    empty_BK = jnp.isneginf(state.ended_scores_BK)
    later_BX = jnp.concatenate([empty_BK, jnp.ones_like(empty_BK)], 1)
    order_BK = jnp.lexsort((-scores_BX, later_BX))[:, : self.beams]
    ids_BXU = jnp.concatenate([state.ended_BKU, state.live_BKU], 1)
    log_probs_BX = jnp.concatenate([state.ended_log_probs_BK, live_BK], 1)
    ids_BKU, log_probs_BK = gather((ids_BXU, log_probs_BX), order_BK)
    none_BK1 = jnp.isneginf(log_probs_BK)[..., None]
    return jnp.where(none_BK1, self.marks.pad, ids_BKU), log_probs_BK

"""Decoding loops, and the scoring of given targets.

A loop knows no model. It asks `step(ids_B, cache, index) -> (logits_BV, cache)`, where
`ids_B` are the targets at place `index` (from 0) and the logits are for the place after
it. `first_BV` are the logits for place 0. Ids come back with 0 after the end mark.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from prompt_tuning.core.model import Batch, Params, PromptedModel, features

EOS = 1
START = 0
Cache = Any
Step = Callable[[Array, Cache, Array], tuple[Array, Cache]]
Decoded = tuple[Int[Array, "B *K U"], Float[Array, "B *K"]]


def greedy(
  step: Step, cache: Cache, first_BV: Float[Array, "B V"], steps: int, eos: int = EOS
) -> tuple[Int[Array, "B U"], Float[Array, " B"]]:
  """The likeliest token at each of `steps` places: ids and their log-probability."""

  def pick(logits_BV, index):
    return jnp.argmax(logits_BV, -1)

  return _rows(step, cache, first_BV, steps, pick, eos)


def sample(
  step: Step,
  cache: Cache,
  first_BV: Float[Array, "B V"],
  steps: int,
  key: Any,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
  eos: int = EOS,
) -> tuple[Int[Array, "B U"], Float[Array, " B"]]:
  """A token drawn at each place: ids and their log-probability unfiltered.

  Args:
    step, cache, first_BV, steps, eos: see the head of the file.
    key: one key, or one a row [B] where a row's draw must not depend on its place.
    temperature, top_k, top_p: see `candidates`.
  """
  if key.ndim == 0:
    key = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(first_BV.shape[0]))

  def draw(key, logits_C, ids_C, index):
    return ids_C[jax.random.categorical(jax.random.fold_in(key, index), logits_C)]

  def pick(logits_BV, index):
    kept = candidates(logits_BV, temperature, top_k, top_p)
    return jax.vmap(draw, (0, 0, 0, None))(key, *kept, index)

  return _rows(step, cache, first_BV, steps, pick, eos)


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


def _rows(step, cache, first_BV, steps, pick, eos):
  """Writes one sequence a row until all have ended or `steps` are written."""

  def write(state: _Rows, logits_BV: Array) -> _Rows:
    chosen_B = pick(logits_BV, state.index).astype(jnp.int32)
    ids_B = jnp.where(state.ended_B, 0, chosen_B)
    gain_B = jnp.where(state.ended_B, 0.0, _log_prob(logits_BV, chosen_B))
    return state._replace(
      index=state.index + 1,
      ids_BU=_put(state.ids_BU, ids_B, state.index),
      log_probs_B=state.log_probs_B + gain_B,
      ended_B=state.ended_B | (ids_B == eos),
    )

  def body(state: _Rows) -> _Rows:
    last = state.index - 1
    logits_BV, cache = step(_at(state.ids_BU, last), state.cache, last)
    return write(state._replace(cache=cache), logits_BV)

  def unfinished(state: _Rows) -> Array:
    return (state.index < steps) & ~state.ended_B.all()

  B = first_BV.shape[0]
  state = _Rows(
    index=jnp.int32(0),
    ids_BU=jnp.zeros((B, steps), jnp.int32),
    log_probs_B=jnp.zeros(B),
    ended_B=jnp.zeros(B, bool),
    cache=cache,
  )
  state = jax.lax.while_loop(unfinished, body, write(state, first_BV))
  return state.ids_BU, state.log_probs_B


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
  eos: int = EOS,
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
    first_BV, steps, eos: see the head of the file.
    beams: K. alpha, length_penalty: see `length_penalty`; alpha >= 0.

  Where fewer than K sequences exist at all, the log-probability of the rest is -inf.
  """
  search = _Search(steps, beams, alpha, length_penalty, eos)
  (B, V), K = first_BV.shape, beams
  cache = jax.tree.map(lambda x: jnp.repeat(x, K, axis=cache_axis), cache)

  def body(state: _Beams) -> _Beams:
    last = state.index - 1
    cache = _reorder(state.cache, state.parents_BK, cache_axis)
    ids_X = _at(state.live_BKU, last).reshape(B * K)
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
  eos: int

  def score(self, log_probs: Array, length: Any) -> Array:
    return log_probs / length_penalty(self.form, self.alpha, length)

  def start(self, B: int, cache: Cache) -> _Beams:
    empty_BKU = jnp.zeros((B, self.beams, self.steps), jnp.int32)
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
    ids_BCU = _put(_gather(state.live_BKU, parents_BC), tokens_BC, state.index)
    ends_BC = tokens_BC == self.eos
    alive_BC = jnp.where(ends_BC, -jnp.inf, log_probs_BC)
    live_BK, kept_BK = jax.lax.top_k(alive_BC, K)
    state = self._close(state, ids_BCU, log_probs_BC, ends_BC)
    state = state._replace(
      index=state.index + 1,
      live_BKU=_gather(ids_BCU, kept_BK),
      live_log_probs_BK=live_BK,
      parents_BK=_gather(parents_BC, kept_BK),
    )
    return state._replace(done_B=state.done_B | self._hopeless(state))

  def _close(self, state, ids_BCU, log_probs_BC, ends_BC) -> _Beams:
    """Lets the sequences that just ended compete for the K ended places."""
    length = state.index + 1
    if self.form == "power":
      ends_BC |= length == self.steps
      ends_BC &= jnp.arange(ends_BC.shape[1]) < self.beams
    scores_BC = self.score(log_probs_BC, length)
    scores_BC = jnp.where(ends_BC & ~state.done_B[:, None], scores_BC, -jnp.inf)
    scores_BX = jnp.concatenate([state.ended_scores_BK, scores_BC], 1)
    log_probs_BC = jnp.where(ends_BC, log_probs_BC, -jnp.inf)
    log_probs_BX = jnp.concatenate([state.ended_log_probs_BK, log_probs_BC], 1)
    ids_BXU = jnp.concatenate([state.ended_BKU, ids_BCU], 1)
    scores_BK, kept_BK = jax.lax.top_k(scores_BX, self.beams)
    return state._replace(
      ended_BKU=_gather(ids_BXU, kept_BK),
      ended_log_probs_BK=_gather(log_probs_BX, kept_BK),
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
    ids_BKU, log_probs_BK = _gather((ids_BXU, log_probs_BX), order_BK)
    return jnp.where(jnp.isneginf(log_probs_BK)[..., None], 0, ids_BKU), log_probs_BK


def generate(
  model: PromptedModel, params: Params, batch: Batch, decoder: Any, key: Any = None
) -> Decoded:
  """Decodes a batch of features: the encoder runs once, the decoder token by token.

  The decoder reads its prompt, where there is one, then the start token, then what it
  wrote. All of it can be jitted, `model` and `decoder` closed over or static.

  Args:
    model, params: what to decode with.
    batch: `inputs` and what else the encoder and the prompt read; one example a row.
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
  _refuse_packed(model, batch)
  backbone, weights = model.backbone, params["backbone"]
  encoded_BTH, mask_BT, injection = model.encode(params, batch)
  start_BUH = backbone.embed(weights, jnp.full((mask_BT.shape[0], 1), START))
  if injection is not None and injection.decoder_input is not None:
    B, _, H = start_BUH.shape
    P = injection.decoder_input.shape[1]
    prompt_BPH = jnp.broadcast_to(injection.decoder_input, (B, P, H))
    start_BUH = jnp.concatenate([prompt_BPH.astype(start_BUH.dtype), start_BUH], 1)
  opening = start_BUH.shape[1]
  # The last token is never fed back, so its keys and values need no place.
  cross, cache = backbone.start(weights, encoded_BTH, opening + decoder.steps - 1)
  first_BV, cache = backbone.step(
    weights, start_BUH, cross, cache, jnp.int32(0), mask_BT
  )

  def step(ids_B: Array, cache: Cache, index: Array) -> tuple[Array, Cache]:
    x_BUH = backbone.embed(weights, ids_B)[:, None]
    return backbone.step(weights, x_BUH, cross, cache, opening + index, mask_BT)

  if decoder.loop == "greedy":
    return greedy(step, cache, first_BV, decoder.steps)
  if decoder.loop == "sample":
    key = jax.random.key(decoder.seed) if key is None else key
    filters = decoder.temperature, decoder.top_k, decoder.top_p
    return sample(step, cache, first_BV, decoder.steps, key, *filters)
  axis, K = backbone.cache_axis, decoder.beams
  penalty = decoder.alpha, axis, decoder.length_penalty
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


def score(model: PromptedModel, params: Params, batch: Batch) -> Float[Array, " B"]:
  """Log-probability of each row's `targets`, summed over its tokens."""
  _refuse_packed(model, batch)
  return _total_log_prob(model.logits(params, batch), batch["targets"])


def choice_scores(
  model: PromptedModel,
  params: Params,
  batch: Batch,
  labels: Int[Array, "*B K U"],
  normalize_by_length: bool = False,
  chunk: int = 0,
) -> Float[Array, "B K"]:
  """Log-probability of each label after each input; each input is encoded once.

  Args:
    model, params, batch: as for `generate`.
    labels: ids of K labels [K U], or of each row's own [B K U], closed by the end mark
      and 0 padded.
    normalize_by_length: divide by the label's tokens.
    chunk: labels run at once, static; 0 for all. The rest wait in a scan.
  """
  _refuse_packed(model, batch)
  backbone, weights = model.backbone, params["backbone"]
  _check_labels(labels, backbone.spec.vocabulary)
  encoded_BTH, mask_BT, injection = model.encode(params, batch)
  B = mask_BT.shape[0]
  prompted = {"decoder": model.lengths.get("decoder", 0)}

  def one(label_BU: Array) -> Array:
    targets = features(label_BU, label_BU, prompted)
    # Mapped over labels, encodings and their keys and values stay one a row.
    logits_BUV = backbone.decode(weights, targets, encoded_BTH, mask_BT, injection)
    total_B = _total_log_prob(logits_BUV, targets["targets"])
    return total_B / (label_BU > 0).sum(1) if normalize_by_length else total_B

  labels = jnp.asarray(labels)
  labels_BKU = jnp.broadcast_to(labels, (B, *labels.shape[-2:]))
  chunk = min(chunk, labels.shape[-2]) or labels.shape[-2]
  return jax.lax.map(one, labels_BKU.swapaxes(0, 1), batch_size=chunk).T


def _check_labels(labels: Any, vocabulary: int) -> None:
  fix = "Make them with `outputs.choice.label_rows`."
  if jnp.ndim(labels) not in (2, 3) or 0 in jnp.shape(labels):
    raise ValueError(
      f"`labels` must be ids [K U] or [B K U], got shape {jnp.shape(labels)}. {fix}"
    )
  if isinstance(labels, jax.core.Tracer):
    return  # Values are known only outside of jit.
  labels = np.asarray(labels)
  if labels.min() < 0 or labels.max() >= vocabulary:
    raise ValueError(
      f"`labels` must hold ids from 0 to {vocabulary - 1} (the vocabulary of the "
      f"backbone), got {labels.min()} to {labels.max()}. {fix}"
    )
  # An end mark alone says nothing, and a pad between tokens would not be scored.
  blank = ((labels == 0) | (labels == EOS)).all(-1)
  holed = ((labels[..., :-1] == 0) & (labels[..., 1:] != 0)).any(-1)
  if blank.any() or holed.any():
    wrong = labels[blank | holed][0].tolist()
    raise ValueError(
      f"`labels` must be tokens, an end mark and 0 from there on, got {wrong}. {fix}"
    )


def _refuse_packed(model: PromptedModel, batch: Batch) -> None:
  if model.segments > 1 or "segment_ids" in batch:
    raise ValueError(
      f"`batch` must hold one example a row, got packed rows (model.segments = "
      f"{model.segments}). Turn packing off to decode or score."
    )


def _log_prob(logits: Float[Array, "*X V"], ids: Int[Array, "*X"]) -> Array:
  chosen = jnp.take_along_axis(logits, ids[..., None], -1)[..., 0]
  return chosen - jax.nn.logsumexp(logits, -1)


def _total_log_prob(logits_BUV: Array, targets_BU: Array) -> Float[Array, " B"]:
  return jnp.where(targets_BU > 0, _log_prob(logits_BUV, targets_BU), 0.0).sum(1)


def _at(ids: Int[Array, "*B U"], index: Int[Array, ""]) -> Int[Array, "*B"]:
  return jax.lax.dynamic_index_in_dim(ids, index, ids.ndim - 1, keepdims=False)


def _put(ids: Array, new: Array, index: Array) -> Int[Array, "*B U"]:
  return jax.lax.dynamic_update_index_in_dim(ids, new, index, ids.ndim - 1)


def _gather(tree: Any, places_BC: Int[Array, "B C"]) -> Any:
  """Row by row, the entries of axis 1 at `places_BC`."""
  take = jax.vmap(lambda x, places_C: jnp.take(x, places_C, axis=0))
  return jax.tree.map(lambda x: take(x, places_BC), tree)


def _reorder(cache: Cache, parents_BK: Int[Array, "B K"], axis: int) -> Cache:
  """Each beam's cache becomes its parent's; rows never mix."""
  B, K = parents_BK.shape

  def move(x: Array) -> Array:
    split = x.reshape(*x.shape[:axis], B, K, *x.shape[axis + 1 :])
    take = jax.vmap(lambda x, places_K: jnp.take(x, places_K, axis), (axis, 0), axis)
    return take(split, parents_BK).reshape(x.shape)

  return jax.tree.map(move, cache)

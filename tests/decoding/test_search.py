"""Searches agree with plain, cache-free ones, and do no more than they need."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decode_tools import (
  CONFIG,
  PROMPTS,
  U,
  batch_of,
  generate,
  inputs,
  oracle,
  padded,
  run,
  setting,
)

from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.decoding import beam, decode, search
from prompt_tuning.outputs import text


def greedy_reference(after, row):
  prefix, total = (), 0.0
  while len(prefix) < U and 1 not in prefix:
    log_probs = after(row, prefix)
    prefix += (int(log_probs.argmax()),)
    total += log_probs[prefix[-1]]
  return prefix, total


def beam_reference(after, row, beams, alpha, form, steps):
  """Both searches in plain Python: [(score, log-probability, prefix)], best first."""

  def penalty(length):
    return ((5 + length) / 6) ** alpha if form == "brevity" else length**alpha

  live, ended = [(0.0, ())], []
  for length in range(1, steps + 1):
    grown = [
      (total + gain, (*prefix, token))
      for total, prefix in live
      for token, gain in enumerate(after(row, prefix))
    ]
    grown = sorted(grown, key=lambda item: -item[0])[: 2 * beams]
    may_end = grown if form == "brevity" else grown[:beams]
    last = form == "power" and length == steps
    ended += [
      (total / penalty(length), total, prefix)
      for total, prefix in may_end
      if prefix[-1] == 1 or last
    ]
    ended = sorted(ended, key=lambda item: -item[0])[:beams]
    live = [item for item in grown if item[1][-1] != 1][:beams]
    hope = live[0][0] / penalty(length if form == "power" else steps)
    if len(ended) == beams and hope <= ended[-1][0]:
      break
  return (ended + [(0, *item) for item in live])[:beams]


@pytest.mark.parametrize("name", PROMPTS)
def test_greedy_is_the_search_without_a_cache(name):
  model, params = setting(name)
  batch = batch_of(model, inputs())
  ids, log_probs = generate(model, params, batch, text.Greedy(U))
  wanted = [greedy_reference(oracle(name), row) for row in range(4)]
  np.testing.assert_array_equal(ids, [padded(prefix) for prefix, _ in wanted])
  np.testing.assert_allclose(log_probs, [total for _, total in wanted], atol=2e-5)
  assert len({tuple(row) for row in np.asarray(ids)}) > 2, "rows must differ"
  assert (ids == 1).any() and not (ids == 1).any(1).all(), "some rows must end"


def test_beams_are_the_search_without_a_cache():
  model, params = setting("both")
  decoder = text.Beam(U, beams=3, alpha=1.0)
  ids, log_probs = generate(model, params, batch_of(model, inputs()), decoder)
  for row in range(4):
    wanted = beam_reference(oracle("both"), row, 3, 1.0, "brevity", U)
    assert np.asarray(ids[row]).tolist() == [padded(item[2]) for item in wanted]
    np.testing.assert_allclose(log_probs[row], [i[1] for i in wanted], atol=5e-5)


# A world with no backbone: the next token depends on the whole prefix, which the cache
# alone remembers, so that a cache in the wrong order is a wrong answer.
SMALL_V, SMALL_U = 5, 4


def small_world(seed, rows):
  tables = np.random.RandomState(seed).normal(0, 1.5, (rows, SMALL_V**SMALL_U, SMALL_V))
  tables -= np.log(np.exp(tables).sum(-1, keepdims=True))

  def place(prefix):
    return sum((t + 1) * 6**i for i, t in enumerate(prefix)) % SMALL_V**SMALL_U

  def after(row, prefix):
    return tables[row, place(prefix)]

  def step(ids, cache, index):
    code = cache["code"] + (ids + 1) * 6**index
    logits = jnp.asarray(tables, jnp.float32)[cache["row"], code % SMALL_V**SMALL_U]
    return logits, {**cache, "code": code}

  cache = {"code": np.zeros(rows, np.int32), "row": np.arange(rows)}
  return after, step, cache, tables[:, 0].astype(np.float32)


@pytest.mark.parametrize("form", text.LENGTH_PENALTIES)
@pytest.mark.parametrize(("beams", "alpha"), [(2, 2.0), (4, 0.6)])
def test_beams_in_a_small_world(form, beams, alpha):
  rows = 150
  after, step, cache, first = small_world(beams, rows)
  ids, log_probs = run(
    beam.beam_search, step, cache, first, SMALL_U, beams, alpha, length_penalty=form
  )
  for row in range(rows):
    wanted = beam_reference(after, row, beams, alpha, form, SMALL_U)
    expected = [padded(item[2], SMALL_U) for item in wanted]
    assert np.asarray(ids[row]).tolist() == expected
    np.testing.assert_allclose(log_probs[row], [i[1] for i in wanted], atol=1e-5)


def test_enough_beams_find_the_best_of_all_sequences():
  rows, alpha = 8, 0.6
  after, step, cache, first = small_world(0, rows)
  ids, log_probs = run(beam.beam_search, step, cache, first, SMALL_U, 64, alpha)

  def everything(row, prefix=(), total=0.0):
    for token, gain in enumerate(after(row, prefix)):
      grown = (*prefix, token)
      if token == 1:
        yield (total + gain) / ((5 + len(grown)) / 6) ** alpha, grown
      elif len(grown) < SMALL_U:
        yield from everything(row, grown, total + gain)

  for row in range(rows):
    best, prefix = max(everything(row))
    assert np.asarray(ids[row, 0]).tolist() == padded(prefix, SMALL_U)
    penalty = beam.length_penalty("brevity", alpha, len(prefix))
    np.testing.assert_allclose(log_probs[row, 0] / penalty, best, rtol=1e-5)


def test_fewer_sequences_than_beams():
  after, step, cache, first = small_world(4, 2)
  ids, log_probs = run(beam.beam_search, step, cache, first, 1, 8)
  for row in range(2):
    best = np.argsort(-after(row, ()))
    # What ended goes before what was cut.
    wanted = [1, *(token for token in best if token != 1), 0, 0, 0]
    assert ids[row, :, 0].tolist() == wanted
    there = after(row, ())[wanted[:5]]
    np.testing.assert_allclose(log_probs[row, :5], there, atol=1e-5)
    assert np.isneginf(log_probs[row, 5:]).all()


def test_caches_are_gathered_along_the_axis_they_are_batched_on():
  rows, beams = 6, 3
  after, step, cache, first = small_world(3, rows)

  def turned(ids, cache, index):
    logits, cache = step(ids, jax.tree.map(lambda x: x[0], cache), index)
    return logits, jax.tree.map(lambda x: x[None], cache)

  cache = jax.tree.map(lambda x: x[None], cache)
  ids, _ = run(beam.beam_search, turned, cache, first, SMALL_U, beams, 0.6, 1)
  for row in range(rows):
    wanted = beam_reference(after, row, beams, 0.6, "brevity", SMALL_U)
    expected = [padded(item[2], SMALL_U) for item in wanted]
    assert np.asarray(ids[row]).tolist() == expected


def test_one_beam_without_penalty_is_greedy():
  _, step, cache, first = small_world(5, 24)
  rules = {"alpha": 0.0, "length_penalty": "power"}
  ids, log_probs = run(beam.beam_search, step, cache, first, SMALL_U, 1, **rules)
  plain_ids, plain_log_probs = run(search.greedy, step, cache, first, SMALL_U)
  np.testing.assert_array_equal(ids[:, 0], plain_ids)
  np.testing.assert_allclose(log_probs[:, 0], plain_log_probs, atol=1e-5)


def test_a_row_does_not_see_its_batch():
  model, params = setting("both")
  rows, decoder = inputs(), text.Beam(U, 3, 1.0)
  ids, log_probs = generate(model, params, batch_of(model, rows), decoder)
  wide = np.pad(rows[::-1], ((0, 2), (0, 3)))
  other_ids, others = generate(model, params, batch_of(model, wide), decoder)
  np.testing.assert_array_equal(ids, other_ids[3::-1])
  np.testing.assert_allclose(log_probs, others[3::-1], atol=2e-5)


def test_top_k_of_one_is_greedy():
  _, step, cache, first = small_world(1, 6)
  key = jax.random.key(0)
  ids, log_probs = run(search.sample, step, cache, first, SMALL_U, key, top_k=1)
  plain_ids, plain_log_probs = run(search.greedy, step, cache, first, SMALL_U)
  np.testing.assert_array_equal(ids, plain_ids)
  np.testing.assert_allclose(log_probs, plain_log_probs, atol=1e-5)


def test_a_key_for_each_row_travels_with_it():
  _, step, cache, first = small_world(1, 6)
  keys = jax.random.split(jax.random.key(0), 6)
  sample = jax.jit(lambda *given: search.sample(step, *given[:2], SMALL_U, given[2]))
  ids, _ = sample(cache, first, keys)
  turned, _ = sample(*jax.tree.map(lambda x: x[::-1], (cache, first, keys)))
  np.testing.assert_array_equal(ids, turned[::-1])


@pytest.mark.parametrize("loop", ["greedy", "beam_search"])
def test_the_loop_stops_once_every_row_has_ended(loop):
  calls = []
  logits = jnp.log(jnp.array([0.01, 0.9, 0.05, 0.03, 0.01]))

  def step(ids, cache, index):
    calls.append(int(index))
    return jnp.broadcast_to(logits, (len(ids), 5)), cache

  first = jnp.stack([logits, jnp.roll(logits, 1)])
  with jax.disable_jit():
    options = {"beams": 1, "alpha": 0.0} if loop == "beam_search" else {}
    ids, _ = getattr(decode, loop)(step, (), first, 30, **options)
  assert calls == [0]
  assert ids.reshape(2, 30)[:, :3].tolist() == [[1, 0, 0], [2, 1, 0]]


@pytest.mark.parametrize("decoder", [text.Greedy(U), text.Sample(U), text.Beam(U, 3)])
def test_the_encoder_runs_once(decoder, monkeypatch):
  calls = []
  encode = T5.encode
  monkeypatch.setattr(T5, "encode", lambda *a, **k: calls.append(1) or encode(*a, **k))
  model, params = setting("both")
  jax.eval_shape(
    lambda p: decode.generate(model, p, batch_of(model, inputs()), decoder), params
  )
  assert calls == [1]


def test_one_program_serves_all_batches():
  model, params = setting()
  ids, _ = generate(model, params, batch_of(model, inputs()), text.Greedy(U))
  programs = generate._cache_size()
  other, _ = generate(model, params, batch_of(model, inputs()[::-1]), text.Greedy(U))
  assert generate._cache_size() == programs and (ids != other).any()


def test_beams_share_the_keys_and_values_of_their_encoding():
  """No array of the program has the size of an encoding repeated for every beam."""
  model, params = setting()
  rows, K = 3, 5
  ids = np.full((rows, 11), 4)

  def run(params):
    return decode.generate(model, params, batch_of(model, ids), text.Beam(U, K))

  program = jax.jit(run).lower(params).as_text()
  one = f"{rows}x11x{CONFIG.num_heads}x{CONFIG.head_dim}x"
  assert one in program
  assert f"{rows * K}x11x" not in program and f"{K}x{rows}x11x2x8" not in program

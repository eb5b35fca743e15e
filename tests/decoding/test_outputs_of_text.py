"""Samples, their filters, and what becomes of ids."""

import dataclasses
import pathlib

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decode_tools import U, batch_of, generate, inputs, oracle, run, setting

from prompt_tuning.decoding import beam, decode, search
from prompt_tuning.outputs import choice, text


def test_samples_report_the_models_own_probability():
  model, params = setting()
  decoder = text.Sample(U, temperature=2.0, top_p=0.95)
  batch = batch_of(model, inputs())
  keys = jax.random.key(3), jax.random.key(3), jax.random.key(4)
  runs = [generate(model, params, batch, decoder, key) for key in keys]
  (ids, log_probs), (again, _), (other, _) = runs
  np.testing.assert_array_equal(ids, again)
  assert (ids != other).any()
  after = oracle()
  for row, ids_U in enumerate(np.asarray(ids)):
    end = ids_U.tolist().index(1) + 1 if 1 in ids_U else U
    tokens = tuple(ids_U[:end].tolist())
    total = sum(after(row, tokens[:i])[token] for i, token in enumerate(tokens))
    np.testing.assert_allclose(log_probs[row], total, atol=5e-5)
    assert not ids_U[end:].any()


def test_without_a_key_the_seed_decides(monkeypatch):
  model, params = setting()
  seeds, make, key = [], jax.random.key, jax.random.key(7)
  monkeypatch.setattr(jax.random, "key", lambda seed: seeds.append(seed) or make(seed))
  for given in (None, key):
    jax.eval_shape(
      lambda params, given=given: decode.generate(
        model, params, batch_of(model, inputs()), text.Sample(U, seed=3), given
      ),
      params,
    )
  assert seeds.count(3) == 1, "the seed is for want of a key only"


def test_top_p_keeps_the_fewest_tokens_that_reach_p():
  probability = np.array([[0.1, 0.4, 0.05, 0.2, 0.25], [0.96, 0.01, 0.01, 0.01, 0.01]])
  logits = jnp.log(jnp.asarray(probability, jnp.float32))
  for p, sizes in ((0.3, (1, 1)), (0.5, (2, 1)), (0.84, (3, 1)), (0.99, (5, 4))):
    kept, ids = search.candidates(logits, 1.0, 0, p)
    for row, size in enumerate(sizes):
      stays = np.isfinite(kept[row])
      mass = np.sort(probability[row, ids[row][stays]])
      assert stays.sum() == size and mass.sum() >= p - 1e-6
      assert mass[1:].sum() < p, "the least likely token kept must be needed"


def test_filters_apply_in_turn():
  logits = jnp.log(jnp.array([[0.1, 0.4, 0.05, 0.2, 0.25]]))
  kept, ids = search.candidates(logits, 1.0, 2, 1.0)
  assert ids.tolist() == [[1, 4]] and np.isfinite(kept).all()
  # Of the two, 0.4 is 0.615: enough for 0.6, though not before the others went.
  kept, _ = search.candidates(logits, 1.0, 2, 0.6)
  assert np.isfinite(kept).tolist() == [[True, False]]
  kept, ids = search.candidates(logits, 0.5, 0, 1.0)
  np.testing.assert_allclose(kept, 2 * logits, rtol=1e-6)
  assert ids.tolist() == [[0, 1, 2, 3, 4]]


def test_draws_follow_the_probabilities():
  log_probs = jnp.log(jnp.array([0.5, 0.0, 0.3, 0.2]))
  first = jnp.broadcast_to(log_probs, (4000, 4))

  def step(ids, cache, index):
    return first, cache

  ids, gained = run(search.sample, step, (), first, 1, jax.random.key(0))
  shares = np.bincount(np.asarray(ids)[:, 0], minlength=4) / 4000
  np.testing.assert_allclose(shares, [0.5, 0, 0.3, 0.2], atol=0.03)
  np.testing.assert_allclose(gained, log_probs[ids[:, 0]], atol=1e-6)


@pytest.mark.parametrize(
  ("make", "named"),
  [
    (lambda: text.Greedy(0), "Greedy.steps"),
    (lambda: text.Sample(U, temperature=0.0), "text.Greedy"),
    (lambda: text.Sample(U, top_k=-1), "Sample.top_k"),
    (lambda: text.Sample(U, top_p=0.0), "Sample.top_p"),
    (lambda: text.Sample(U, top_p=1.5), "Sample.top_p"),
    (lambda: text.Sample(U, seed=-1), "Sample.seed"),
    (lambda: text.Beam(U, beams=0), "Beam.beams"),
    (lambda: text.Beam(U, alpha=-0.1), "Beam.alpha"),
    (lambda: text.Beam(U, length_penalty="none"), "Beam.length_penalty"),
    (lambda: beam.length_penalty("none", 1.0, 1), "length_penalty"),
    (lambda: text.answers(np.zeros(3, int), str), "ids"),
    (lambda: text.answers(np.zeros((3, 2)), str), "generate"),
  ],
)
def test_bad_settings_are_refused(make, named):
  with pytest.raises(ValueError, match=named):
    make()


def test_packed_rows_and_unknown_loops_are_refused():
  model, params = setting()
  batch = batch_of(model, inputs())
  packed = {**batch, "segment_ids": batch["inputs"]}
  with pytest.raises(ValueError, match="packing"):
    decode.generate(model, params, packed, text.Greedy(U))
  with pytest.raises(ValueError, match="packing"):
    packed = dataclasses.replace(model, segments=2)
    decode.generate(packed, params, batch, text.Greedy(U))
  odd = dataclasses.make_dataclass("Odd", [("steps", int), ("loop", str)])(U, "wild")
  with pytest.raises(ValueError, match="wild"):
    decode.generate(model, params, batch, odd)


def test_ids_become_text():
  def spell(ids):
    return "".join(chr(96 + i) for i in ids)

  ids = np.array([[5, 4, 1, 0, 0], [3, 1, 7, 7, 7], [1, 0, 0, 0, 0], [9, 0, 9, 9, 9]])
  assert text.answers(ids, spell) == ["ed", "c", "", "iiii"]
  beams = np.stack([ids, ids[::-1]], 1)
  assert text.answers(beams, spell) == ["ed", "c", "", "iiii"]


@pytest.mark.parametrize(
  ("name", "kind"),
  [
    ("text_greedy", text.Greedy),
    ("text_sample", text.Sample),
    ("text_beam", text.Beam),
    ("choice", choice.Choice),
  ],
)
def test_gin_files_provide_an_output(name, kind):
  path = pathlib.Path(__file__).parents[2] / "gin" / "outputs" / f"{name}.gin"
  gin.clear_config()
  try:
    gin.parse_config(path.read_text())
    output = gin.query_parameter("%OUTPUT").scoped_configurable_fn()
  finally:
    gin.clear_config()
  assert isinstance(output, kind) and isinstance(hash(output), int)

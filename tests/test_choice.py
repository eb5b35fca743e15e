"""Labels score as if each were scored alone, with one encoding for all of them."""

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.backbones.t5.config import T5Config
from prompt_tuning.core.injection import Injection
from prompt_tuning.core.model import PromptedModel, features
from prompt_tuning.core.places import Slots
from prompt_tuning.decoding import score as scoring
from prompt_tuning.outputs import choice

V, T = 23, 7
CONFIG = T5Config(
  vocab_size=V,
  emb_dim=16,
  num_heads=2,
  head_dim=8,
  mlp_dim=32,
  num_encoder_layers=1,
  num_decoder_layers=1,
  mlp_activations=("relu",),
)
LABELS = np.array([[5, 6, 1], [5, 1, 0], [9, 1, 0], [2, 2, 1], [9, 8, 1]])


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
  """These programs run once: compiling them well takes longer than running them."""
  before = jax.config.read("jax_disable_most_optimizations")
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", before)


@dataclasses.dataclass(frozen=True)
class BothSides:
  """A prompt whose vectors are its parameters: 2 encoder and 3 decoder positions."""

  needs = frozenset()
  lengths = {"encoder": 2, "decoder": 3}

  def apply(self, variables, context, spec, train=False, rngs=None, mutable=()):
    params = variables["params"]
    held = {f"{side}.input": Slots(params[side]) for side in self.lengths}
    return Injection(held), {}


@functools.cache
def setting(prompted=True):
  backbone, random = T5(CONFIG), np.random.RandomState(0)

  def draw(leaf):
    spread = random.normal(0, 2 * leaf.shape[0] ** -0.5, leaf.shape)
    return jnp.asarray(1 + 0.1 * spread if leaf.ndim == 1 else spread, jnp.float32)

  weights = jax.tree.map(draw, backbone.shapes())
  shapes = {"encoder": (1, 2, 16), "decoder": (1, 3, 16)} if prompted else {}
  tables = {side: jnp.asarray(random.normal(0, 1, s)) for side, s in shapes.items()}
  model = PromptedModel(backbone, BothSides() if prompted else None)
  return model, {"backbone": weights, "prompt": tables}


def inputs(rows=3):
  ids = np.random.RandomState(1).randint(3, V, (rows, T))
  return np.where(np.arange(T) < np.arange(T, T - rows, -1)[:, None], ids, 0)


def batch_of(model, ids):
  batch = features(ids, np.ones_like(ids), model.lengths)
  return {name: batch[name] for name in ("inputs", "prompt_index")}


@functools.cache
def alone(prompted):
  """Scores [B K], each label in a batch of its own; by `score`, and by hand."""
  model, params = setting(prompted)

  @jax.jit
  def run(params, targets):
    targets = jnp.broadcast_to(targets, (3, LABELS.shape[1]))
    batch = features(inputs(), targets, model.lengths)
    return scoring.score(model, params, batch), model.logits(params, batch)

  scores, by_hand = [], []
  for label in LABELS:
    score, logits = run(params, label)
    logits = np.asarray(logits, np.float64)[:, model.lengths.get("decoder", 0) :]
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    length = np.count_nonzero(label)
    by_hand.append(log_probs[:, np.arange(length), label[:length]].sum(1))
    scores.append(score)
  scores = np.stack(scores, 1)
  np.testing.assert_allclose(scores, np.stack(by_hand, 1), atol=2e-5)
  assert np.ptp(scores, axis=0).max() > 0.5, "rows must differ"
  return scores


@pytest.mark.parametrize(
  ("prompted", "options"),
  [(False, {"normalize_by_length": True}), (True, {}), (True, {"chunk": 2})],
)
def test_labels_score_as_if_alone(prompted, options):
  model, params = setting(prompted)
  options = {"labels": LABELS, **options}
  run = jax.jit(functools.partial(scoring.choice_scores, model, **options))
  wanted = alone(prompted)
  if "normalize_by_length" in options:
    wanted = wanted / np.count_nonzero(LABELS, 1)
  scores = run(params, batch_of(model, inputs()))
  np.testing.assert_allclose(scores, wanted, atol=2e-5)


def test_a_row_sees_neither_its_batch_nor_other_labels():
  model, params = setting()
  ids = np.pad(inputs()[::-1], ((0, 1), (0, 2)))
  order = np.array([[0, 1], [3, 2], [1, 4], [0, 0]])
  labels = np.pad(LABELS, ((0, 0), (0, 2)))[order]
  run = jax.jit(functools.partial(scoring.choice_scores, model))
  scores = run(params, batch_of(model, ids), labels)
  expected = np.take_along_axis(alone(True)[::-1], order[:3], 1)
  np.testing.assert_allclose(scores[:3], expected, atol=2e-5)


@pytest.mark.parametrize("chunk", [0, 4])
def test_inputs_are_encoded_once_and_never_repeated(chunk, monkeypatch):
  calls = []
  encode = T5.encode
  monkeypatch.setattr(T5, "encode", lambda *a, **k: calls.append(1) or encode(*a, **k))
  model, params = setting()
  batch = batch_of(model, np.full((3, 9), 4))

  def run(params):
    return scoring.choice_scores(model, params, batch, LABELS, chunk=chunk)

  program = jax.jit(run).lower(params).as_text()
  K = chunk or len(LABELS)
  assert calls == [1] and "3x11x2x8x" in program
  for repeated in (f"{3 * K}x11x", f"{K}x3x11x2x8", f"3x{K}x11x2x8"):
    assert repeated not in program


def test_scores_train_a_prompt():
  model, params = setting()

  def loss(prompt):
    given = {**params, "prompt": prompt}
    batch = batch_of(model, inputs())
    return scoring.choice_scores(model, given, batch, LABELS, chunk=2).sum()

  shapes = jax.eval_shape(jax.grad(loss), params["prompt"])
  assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, params["prompt"])


@pytest.mark.parametrize(
  ("labels", "named"),
  [
    (np.zeros((0, 3), int), "shape"),
    (np.array([5, 1]), "shape"),
    (np.array([[5, 1], [V, 1]]), "0 to 22"),
    (np.array([[5, 1], [-1, 1]]), "0 to 22"),
    (np.array([[5, 1], [0, 0]]), r"got \[0, 0\]"),
    (np.array([[5, 1], [1, 0]]), r"got \[1, 0\]"),
    (np.array([[5, 1, 0], [5, 0, 1]]), r"got \[5, 0, 1\]"),
  ],
)
def test_bad_labels_are_refused(labels, named):
  model, params = setting()
  with pytest.raises(ValueError, match=f"labels.*{named}"):
    scoring.choice_scores(model, params, {}, labels)


def test_packed_rows_are_refused():
  model, params = setting()
  packed = {**batch_of(model, inputs()), "segment_ids": inputs()}
  for run in (scoring.score, functools.partial(scoring.choice_scores, labels=LABELS)):
    with pytest.raises(ValueError, match="packing"):
      run(model, params, packed)


def spell(label):
  return [ord(letter) - 96 for letter in label]


def test_labels_become_rows_and_scores_become_labels():
  labels = ["no", "yes", "ab"]
  rows = choice.label_rows(labels, spell)
  assert rows.tolist() == [[14, 15, 1, 0], [25, 5, 19, 1], [1, 2, 1, 0]]
  assert rows.dtype == np.int32
  scores = jnp.array([[-1.0, -2.0, -3.0], [-3.0, -0.5, -0.5]])
  assert choice.answers(scores, labels) == ["no", "yes"]


@pytest.mark.parametrize(
  ("make", "named"),
  [
    (lambda: choice.label_rows([], spell), "labels"),
    (lambda: choice.label_rows(["yes", ""], spell), "empty"),
    (lambda: choice.label_rows(["yes", "no", "yes"], spell), "twice"),
    (lambda: choice.answers(np.zeros((2, 3)), ["yes", "no"]), "scores_BK"),
    (lambda: choice.Choice(chunk=-1), "Choice.chunk"),
  ],
)
def test_bad_words_are_refused(make, named):
  with pytest.raises(ValueError, match=named):
    make()


def test_many_labels_are_made_into_pieces_in_seconds():
  labels = [str(i) for i in range(50_000)]
  start = time.monotonic()
  assert len(choice.label_rows(labels, lambda text: [int(text) + 3])) == 50_000
  assert time.monotonic() - start < 5

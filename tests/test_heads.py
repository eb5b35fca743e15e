"""Heads: what they read, what they say, their losses, and that rows stay apart."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import method_tools as tools
import numpy as np
import pytest

from prompt_tuning.core import describe
from prompt_tuning.core import trainable as branches
from prompt_tuning.core.forward import Forward
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.data.lists import Lists
from prompt_tuning.engine import conventions, heads, product, step
from prompt_tuning.heads.pooled import Pooled, count
from prompt_tuning.objectives import classes
from prompt_tuning.objectives import objective as objectives
from prompt_tuning.objectives.cross_entropy import CrossEntropy
from prompt_tuning.outputs import classes as answers
from prompt_tuning.outputs.choice import Choice

METHODS = "prompt_tuning", "prompt_tuning_decoder", "prefix_tuning", "unprompted"
C, H = 5, tools.H


@pytest.fixture(scope="module")
def get(tmp_path_factory):
  """(method, head) -> its case with that head, drawn at random."""
  folder, found = tmp_path_factory.mktemp("arrays"), {}

  def case(name, head, objective=None):
    if name not in found:
      found[name] = tools.case(name, folder)
    plain = found[name]
    model = dataclasses.replace(plain.model, head=head)
    own = tools.random_params(model.head_shapes(), salt="head")
    objective = objective or classes.BinaryCrossEntropy()
    method = dataclasses.replace(plain.method, head=head, objective=objective)
    params = {**plain.params, "head": own}
    return dataclasses.replace(plain, model=model, method=method, params=params)

  return case


def forward(case, batch=None, key=None):
  return Forward(case.model, case.params, batch or case.batch(), key)


@pytest.mark.parametrize("name", METHODS)
def test_the_mean_is_that_of_the_text_alone(get, name):
  one = get(name, Pooled(C))
  batch = one.batch()
  encoded, _, _ = one.encoded
  text = (np.asarray(batch["inputs"]) > 0) & (np.asarray(batch["prompt_index"]) < 0)
  assert (text.sum(1) == [len(row["inputs"]) for row in one.rows]).all()
  pairs = zip(np.asarray(encoded), text, strict=True)
  wanted = np.stack([states[own].mean(0) for states, own in pairs])
  tools.assert_close(forward(one).seen, wanted)


@pytest.mark.parametrize("name", METHODS)
def test_the_first_state_is_that_before_any_target(get, name):
  """A decoder is causal: fed its start token alone, its state is the first of many."""
  one = get(name, Pooled(C, "first"))
  front = one.model.lengths.get("decoder", 0)
  states = one.model.states(one.params, one.batch())
  tools.assert_close(forward(one).seen, states[:, front])


@pytest.mark.parametrize("pool", ["mean", "first"])
@pytest.mark.parametrize("name", METHODS[:3])
def test_packed_equals_unpacked(get, name, pool):
  one = get(name, Pooled(C, pool))
  model, batch, places = one.packed()
  found = Forward(model, one.params, batch).head
  alone = forward(one).head
  assert found.shape == (tools.B * tools.S, C)
  assert np.isfinite(found).all()
  for number, (b, s) in places.items():
    tools.assert_close(found[b * tools.S + s - 1], alone[number])


@pytest.mark.parametrize("form", ["linear", "dense_tanh"])
def test_forms_are_their_formulas(get, form):
  one = get("unprompted", Pooled(C, "mean", form, dropout_rate=0.5))
  own = {name: np.asarray(x) for name, x in one.params["head"].items()}
  h = np.asarray(forward(one).seen)
  numbers = C * (H + 1)
  if form == "dense_tanh":
    h = np.tanh(h @ own["dense_kernel"] + own["dense_bias"])
    numbers += H * (H + 1)
  wanted = h @ own["out_kernel"] + own["out_bias"]
  tools.assert_close(forward(one).head, wanted)
  assert branches.count(own) == numbers
  # Dropout needs a key, and then acts.
  dropped = forward(one, key=jax.random.key(1)).head
  assert np.abs(dropped - wanted).max() > 0.1
  again = forward(one, key=jax.random.key(1)).head
  np.testing.assert_array_equal(dropped, again)


def test_a_fresh_head_starts_small_and_without_bias():
  drawn = PromptedModel(tools.BACKBONE, head=Pooled(300)).init_head(jax.random.key(0))
  assert not drawn["out_bias"].any()
  assert 0.018 < drawn["out_kernel"].std() < 0.022


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


LOSSES = {
  "label": (classes.CrossEntropy(), C, np.arange(tools.B) % C),
  "smooth": (classes.CrossEntropy(0.1), C, np.arange(tools.B) % C),
  "labels": (
    classes.BinaryCrossEntropy(),
    C,
    (np.arange(tools.B * C).reshape(tools.B, C) % 3 == 0).astype(np.float32),
  ),
  "number": (classes.SquaredError(), 1, np.linspace(-2, 3, tools.B, dtype=np.float32)),
}


def by_hand(kind, scores, labels):
  """Each example's loss, in numpy."""
  if kind == "number":
    return (scores[:, 0] - labels) ** 2
  if kind == "labels":
    p = 1 / (1 + np.exp(-scores))
    return -(labels * np.log(p) + (1 - labels) * np.log(1 - p)).mean(1)
  s = {"label": 0.0, "smooth": 0.1}[kind]
  target = (1 - s) * np.eye(C)[labels] + s / C
  return -(target * np.log(softmax(scores))).sum(1)


@pytest.mark.parametrize("kind", LOSSES)
def test_losses_are_their_formulas(get, kind):
  objective, numbers, labels = LOSSES[kind]
  one = get("prompt_tuning", Pooled(numbers), objective)
  batch = {**one.batch(), "labels": jnp.asarray(labels)}
  # The last two rows only fill up.
  batch["targets"] = batch["targets"].at[-2:].set(0)
  term = objective(forward(one, batch))
  scores = np.asarray(forward(one, batch).head, np.float64)
  assert (
    term.weight == objective.count(batch, one.model.backbone.spec.ids) == tools.B - 2
  )
  wanted = by_hand(kind, scores, labels)[:-2].sum()
  np.testing.assert_allclose(term.total, wanted, rtol=1e-5)


@pytest.mark.parametrize("kind", ["label", "labels"])
def test_parts_of_a_batch_add_up_beside_the_loss_of_words(get, kind):
  """Words and a head in one pass: microbatches give the gradient of the whole."""
  own, count, labels = LOSSES[kind]
  objective = objectives.Weighted((CrossEntropy(), own), (1.0, 0.7))
  one = get("prompt_tuning", Pooled(count), own)
  batch = {**one.batch(), "labels": jnp.asarray(labels)}
  batch["targets"] = batch["targets"].at[-1].set(0)
  trainable, frozen = branches.split(one.params, ("prompt", "head"))

  def gradient(parts):
    run = jax.jit(step.gradients(one.model, objective, parts))
    grads, terms = run(trainable, frozen, batch, None)
    return branches.flatten(grads), objectives.mean(objective, terms)

  whole, loss = gradient(1)
  parts, same = gradient(4)
  np.testing.assert_allclose(loss, same, rtol=1e-5)
  for path, value in whole.items():
    assert np.asarray(value).any(), path
    # Rows are added up in another order, through five layers.
    tools.assert_close(parts[path], value, 5e-5)


def test_a_head_trains_unless_it_is_named_and_nothing_else_must():
  model = PromptedModel(tools.BACKBONE, head=Pooled(C))
  assert model.trains(("prompt",)) == ("prompt", "head")
  assert model.trains(()) == ("head",)
  assert model.trains(("head/out_bias",)) == ("head/out_bias",)
  assert PromptedModel(tools.BACKBONE).trains(("prompt",)) == ("prompt",)


# ---- answers


ROWS = np.array([[2.0, -1.0, 0.5], [-3.0, -2.0, -1.0]], np.float32)
NAMES = ["a", "b", "c"]


def test_answers_are_labels_by_their_rules():
  label = answers.Label().records({"scores": ROWS}, NAMES)
  assert [one["prediction"] for one in label] == ["a", "c"]
  assert label[0]["scores"] == {"a": 2.0, "b": -1.0, "c": 0.5}
  number = answers.Number().records({"scores": np.array([0.5, 1 / 3])}, None)
  assert [one["prediction"] for one in number] == ["0.5", "0.333333"]
  assert number[0]["score"] == 0.5


def test_a_threshold_moves_what_is_held_and_no_score():
  shares = 1 / (1 + np.exp(-ROWS))
  found = {}
  for threshold in (0.1, 0.5, 0.8):
    output = answers.Labels(threshold, ";")
    np.testing.assert_allclose(output.scores(ROWS), shares, rtol=1e-6)
    records = output.records({"scores": shares}, NAMES)
    found[threshold] = [one["prediction"] for one in records]
    assert records[1]["scores"]["b"] == pytest.approx(shares[1, 1])
  assert found == {
    0.1: ["a;b;c", "b;c"],
    0.5: ["a;c", "none"],
    0.8: ["a", "none"],
  }


@pytest.mark.parametrize(
  "output", [answers.Label(), answers.Labels(0.3, ", "), answers.Number()]
)
def test_a_card_repeats_how_a_head_answers(output):
  task = lists(labels=["a", "b"])
  card = json.loads(json.dumps(conventions.said(task, output)))
  assert conventions.of(card).output == output


# ---- what does not fit


def lists(targets="ab", **more):
  return Lists(train=[(f"text {t}", t) for t in targets], metrics=(), **more)


@pytest.mark.parametrize(
  ("make", "words"),
  [
    (lambda: Pooled(0), ["Pooled.classes", "LABELS"]),
    (lambda: Pooled(2, form="deep"), ["HEAD_FORM", "'deep'", "dense_tanh"]),
    (lambda: Pooled(2, dropout_rate=1.0), ["HEAD_DROPOUT", "below 1"]),
    (
      lambda: PromptedModel(tools.BACKBONE, head=Pooled(2, "last")),
      ["HEAD", "'last'", "mean", "first"],
    ),
    (lambda: answers.Labels(1.0), ["THRESHOLD", "(0, 1)"]),
    (lambda: answers.Labels(separator=""), ["LABEL_SEPARATOR"]),
    (lambda: classes.CrossEntropy(1.0), ["label_smoothing", "[0, 1)"]),
    (lambda: answers.Label().ids({}, NAMES, None), ["head", "no ids"]),
  ],
)
def test_bad_settings_are_refused(make, words):
  with pytest.raises(ValueError) as error:
    make()
  assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
  ("head", "objective", "output", "task", "words"),
  [
    (None, classes.CrossEntropy(), None, {}, ["`OBJECTIVE`", "HEAD", "pooled.gin"]),
    (None, CrossEntropy(), answers.Label(), {}, ["`OUTPUT`", "HEAD"]),
    (2, CrossEntropy(), None, {}, ["`HEAD`", "learn nothing", "label.gin"]),
    (3, classes.CrossEntropy(), None, {}, ["3 classes", "wants 2"]),
    (2, classes.SquaredError(), None, {}, ["SquaredError", "number", "label.gin"]),
    (2, classes.CrossEntropy(), answers.Labels(), {}, ["`OUTPUT` (Labels)"]),
    (
      2,
      classes.CrossEntropy(),
      None,
      {"separator": "|"},
      ["LABEL_SEPARATOR", "gin/objectives/labels.gin"],
    ),
  ],
)
def test_parts_that_do_not_fit_are_refused(head, objective, output, task, words):
  head = None if head is None else Pooled(head)
  model = PromptedModel(tools.BACKBONE, head=head)
  with pytest.raises(ValueError) as error:
    heads.check(model, objective, output, lists(labels=["a", "b"], **task))
  assert all(word in str(error.value) for word in words), error.value


def test_parts_that_fit_are_not():
  two, one = (PromptedModel(tools.BACKBONE, head=Pooled(n)) for n in (2, 1))
  task = lists(labels=["a", "b"])
  heads.check(two, classes.CrossEntropy(), answers.Label(), task)
  heads.check(two, classes.CrossEntropy(), Choice(), task)
  heads.check(one, classes.SquaredError(), answers.Number(), lists("12"))
  heads.check(PromptedModel(tools.BACKBONE), CrossEntropy(), Choice(), task)
  assert [count(x) for x in (None, [], ["a", "b"])] == [1, 1, 2]


def test_the_word_of_another_room_is_no_head(tmp_path):
  saved = product.Product(None, {"head": {"out_bias": np.zeros(2)}}, {}, head=Pooled(2))
  saved.save(tmp_path)
  assert product.load(tmp_path).head == Pooled(2)
  card = json.loads((tmp_path / "card.json").read_text())
  for word in ("prompt_tuning.parameterisers.dense:Dense", "os:system"):
    card["head"] = {"class": word}
    (tmp_path / "card.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match="describes no prompt"):
      product.load(tmp_path)
  del card["head"]
  (tmp_path / "card.json").write_text(json.dumps(card))
  with pytest.raises(ValueError, match="holds only backbone"):
    product.load(tmp_path)
  assert describe.rebuild(describe.describe(Pooled(2, "first"))) == Pooled(2, "first")

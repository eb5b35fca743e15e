"""Few-shot draws, mixtures, and tasks of SeqIO's registry."""

import pathlib
import sys
import time
import types

import pytest

from prompt_tuning.data import (
  features,
  fewshot,
  lists,
  mixtures,
  registered,
  vocabularies,
)
from prompt_tuning.engine import evaluate, loop

ROOT = pathlib.Path(__file__).parents[1]
VOCABULARY = str(ROOT / "prompt_tuning/demo/mini/spiece.model")


@pytest.fixture(scope="module")
def vocabulary():
  seqio = pytest.importorskip("seqio")
  return seqio.SentencePieceVocabulary(VOCABULARY, extra_ids=100)


def task(name, count, labels=("good", "bad"), **fields):
  rows = [(f"{name} {i}", labels[i % len(labels)]) for i in range(count)]
  return lists.Lists(
    **{"name": name, "train": rows, "validation": rows[:2], "labels": labels, **fields}
  )


def inputs(examples):
  return [example["inputs"] for example in examples]


def read(dataset, count=None):
  dataset = dataset if count is None else dataset.take(count)
  return [
    (e["inputs_pretokenized"].decode(), int(e["task"]))
    for e in dataset.as_numpy_iterator()
  ]


# --- few shots


def test_few_shots_of_each_label():
  drawn = fewshot.FewShot(task("films", 40), 4, 7)
  targets = [example["targets"] for example in drawn.examples("train")]
  assert sorted(targets) == ["bad"] * 4 + ["good"] * 4
  assert drawn.labels == ("good", "bad") and drawn.metrics == ("accuracy",)
  assert drawn.name == "films_4shot_7"
  assert len(drawn.examples("validation")) == 2


def test_draws_are_seeded_and_nested():
  films = task("films", 40)
  four, again, eight, other = (
    inputs(fewshot.FewShot(films, shots, seed).examples("train"))
    for shots, seed in ((4, 7), (4, 7), (8, 7), (4, 8))
  )
  assert four == again and four != other and set(four) < set(eight)


def test_validation_shots_are_disjoint_and_leave_the_rest_to_be_had():
  films = task("films", 40)
  plain = fewshot.FewShot(films, 4, 7)
  drawn = fewshot.FewShot(films, 4, 7, validation_shots=6)
  assert drawn.splits == ("train", "validation", "full_validation")
  assert drawn.examples("train") == plain.examples("train")
  validation = inputs(drawn.examples("validation"))
  assert len(validation) == 12
  assert not set(validation) & set(inputs(drawn.examples("train")))
  assert drawn.examples("full_validation") == films.examples("validation")


def one_in_twenty(count=200):
  return [(f"{i}", "rare" if i % 20 == 19 else "common") for i in range(count)]


def test_few_shots_without_labels_are_drawn_by_targets_that_repeat(caplog):
  drawn = fewshot.FewShot(lists.Lists(one_in_twenty()), 8).examples("train")
  targets = [example["targets"] for example in drawn]
  assert sorted(targets) == ["common"] * 8 + ["rare"] * 8
  labelled = lists.Lists(one_in_twenty(), labels=("common", "rare"))
  assert drawn == fewshot.FewShot(labelled, 8).examples("train")
  assert not caplog.messages


def test_few_shots_that_cannot_be_drawn_by_targets_say_so(caplog):
  drawn = fewshot.FewShot(lists.Lists(one_in_twenty(40)), 8).examples("train")
  assert len(drawn) == 8
  (line,) = caplog.messages
  assert "only 2 examples have the target 'rare'" in line and "altogether" in line
  caplog.clear()
  free = lists.Lists([(f"q {i}", f"a {i}") for i in range(10)])
  assert len(fewshot.FewShot(free, 3).examples("train")) == 3
  (line,) = caplog.messages
  assert "10 different targets in 10 examples" in line and "LABELS" in line


def test_few_shots_of_many_labels_take_no_longer_than_reading_them():
  labels = tuple(f"{i}" for i in range(20_000))
  start = time.monotonic()
  (chosen,) = fewshot.draw(labels, labels, [1], 0, "shots", "it")
  assert chosen == list(range(20_000))
  assert time.monotonic() - start < 5


@pytest.mark.parametrize("shots", [0, -1, 2.5, "2", True])
def test_shots_are_whole_numbers(shots):
  with pytest.raises(ValueError, match="FewShot.shots.*whole number, at least 1"):
    fewshot.FewShot(task("films", 10), shots)
  with pytest.raises(ValueError, match="FewShot.seed.*whole number, at least 0"):
    fewshot.FewShot(task("films", 10), 1, -1)


def test_few_shots_without_labels_are_drawn_from_all():
  free = lists.Lists([(f"q {i}", f"a {i}") for i in range(10)])
  assert len(fewshot.FewShot(free, 3).examples("train")) == 3


def test_too_few_examples_are_refused():
  films = task("films", 10)
  with pytest.raises(ValueError, match="asks for 6 examples of the label 'bad'.*has 5"):
    fewshot.FewShot(films, 6).examples("train")
  with pytest.raises(ValueError, match=r"asks for 3 \+ 3 examples"):
    fewshot.FewShot(films, 3, validation_shots=3).examples("validation")
  with pytest.raises(ValueError, match="no split 'train'"):
    fewshot.FewShot(task("films", 4, train=None), 1)


# --- mixtures


def test_a_mixture_numbers_its_tasks_in_order(vocabulary):
  mixed = mixtures.Mixture([task("a", 3), task("b", 2)])
  expected = [("a 0", 0), ("a 1", 0), ("a 2", 0), ("b 0", 1), ("b 1", 1)]
  assert read(mixed.dataset(vocabulary, "train")) == expected
  assert [(e["inputs"], e["task"]) for e in mixed.examples("train")] == expected
  tokens = mixed.tokens(vocabulary, "train", first=4)
  assert [int(row["task"]) for row in tokens] == [0, 0, 0, 1]
  assert {"inputs", "targets", "mark"} < set(tokens[0])


def test_only_plain_proportions_can_be_read_once():
  tasks = [task("a", 3), task("b", 2)]
  assert not mixtures.Mixture(tasks).streams
  assert mixtures.Mixture(tasks, "equal").streams
  assert mixtures.Mixture(tasks, cap=2).streams


def test_finite_epochs_hold_every_example_as_often(vocabulary):
  mixed = mixtures.Mixture([task("a", 5), task("b", 2)])
  once = [(example["inputs"], example["task"]) for example in mixed.examples("train")]
  data = mixed.dataset(vocabulary, "train", shuffle=True, seed=1, epochs=2)
  rows = read(data)
  assert sorted(rows) == sorted(once * 2) and rows != sorted(rows)
  assert read(data) == rows


@pytest.mark.parametrize(
  ("rates", "cap", "shares"),
  [
    ("equal", None, (0.5, 0.5)),
    ("proportional", None, (0.75, 0.25)),
    ("proportional", 6, (0.6, 0.4)),
    ((1, 9), None, (0.1, 0.9)),
  ],
)
def test_rates(rates, cap, shares):
  mixed = mixtures.Mixture([task("a", 12), task("b", 4)], rates, cap)
  assert mixed.weights() == pytest.approx(shares)


def test_rates_say_how_often_a_task_is_drawn(vocabulary):
  mixed = mixtures.Mixture([task("a", 2), task("b", 4)], (1, 9))

  def drawn(seed):
    data = mixed.dataset(vocabulary, "train", shuffle=True, seed=seed, epochs=None)
    return read(data, 300)

  rows = drawn(0)
  share = sum(number for _, number in rows) / 300
  assert abs(share - 0.9) < 4 * (0.1 * 0.9 / 300) ** 0.5
  assert rows == drawn(0) != drawn(1)


def test_a_split_that_one_task_lacks(vocabulary):
  mixed = mixtures.Mixture([task("a", 3, validation=None), task("b", 4)], (1, 3))
  assert mixed.splits == ("train", "validation")
  assert read(mixed.dataset(vocabulary, "validation")) == [("b 0", 1), ("b 1", 1)]
  assert mixed.weights("validation") == (1.0,)


def test_labels_are_common_or_none():
  assert mixtures.Mixture([task("a", 3), task("b", 3)]).labels == ("good", "bad")
  other = task("b", 3, ("yes", "no"))
  assert mixtures.Mixture([task("a", 3), other]).labels is None
  with pytest.raises(ValueError, match=r"labels` is \['yes'\].*in its scope"):
    mixtures.Mixture([task("a", 3), other], labels=["yes"])


def test_scores_are_each_tasks_own():
  mixed = mixtures.Mixture([task("a", 2), task("b", 4)])
  scores = mixed.score(["good", "bad", "x", "bad", "good", "bad"], "train")
  assert scores == {"a/accuracy": 100.0, "b/accuracy": 75.0, "mean": 87.5}
  some = mixed.score(["good", "bad", "x"], "train", numbers=range(3))
  assert some == {"a/accuracy": 100.0, "b/accuracy": 0.0, "mean": 50.0}
  one = mixed.score(["bad"], "train", numbers=range(1))
  assert one == {"a/accuracy": 0.0, "mean": 0.0}
  with pytest.raises(ValueError, match="6 targets.*got 2"):
    mixed.score(["good", "bad"], "train")


def test_build_gives_a_seqio_mixture(vocabulary):
  built = mixtures.Mixture([task("a", 3), task("b", 1)], name="both").build(vocabulary)
  assert {t.name: built.get_rate(t) for t in built.tasks} == {"a": 0.75, "b": 0.25}
  (first, *_) = built.get_dataset(None, "train", num_epochs=1).as_numpy_iterator()
  assert set(first) == {"inputs", "targets"}


def test_bad_mixtures_are_refused():
  with pytest.raises(ValueError, match="different names, got.*'a', 'a'"):
    mixtures.Mixture([task("a", 3), task("a", 3)])
  with pytest.raises(ValueError, match="different names"):
    mixtures.Mixture([])
  odd = float("inf"), float("nan"), -1, True, "1", None, [1], 1e308
  pairs = [(1, rate) for rate in odd[:-1]] + [(odd[-1], odd[-1])]
  for rates in ((1,), (1, 0), "evenly", *pairs):
    with pytest.raises(ValueError, match="Mixture.rates.*2 numbers above 0"):
      mixtures.Mixture([task("a", 3), task("b", 3)], rates)
  with pytest.raises(ValueError, match="Mixture.cap"):
    mixtures.Mixture([task("a", 3)], "equal", cap=3)


def test_members_are_evaluated_apart(vocabulary, monkeypatch):
  """Losses of each, and answers among the labels of each."""
  mixed = mixtures.Mixture([task("a", 3), task("b", 4, ("yes", "no"))])
  rows = mixed.tokens(vocabulary, "train")
  asked = []

  def predictor(model, vocabulary, labels, output, place):
    def run(params, batch, numbers):
      asked.append((labels, numbers[: len(batch["inputs"])].tolist()))
      return [{"prediction": labels[0]} for _ in batch["inputs"]]

    return run

  def term(model, params, batch):
    """A loss of the task's number for each row that has a target."""
    real = (batch["targets"] > 0).any(1)
    return (batch["task"] * real).sum(), real.sum()

  monkeypatch.setattr(evaluate, "predictor", predictor)
  monkeypatch.setattr(
    evaluate.Evaluator, "_means", lambda self, t: {"loss": t[0] / t[1]}
  )
  made = evaluate.Evaluator(
    None, None, features.Layout(8, 4), vocabulary, mixed, object(), 4
  )
  made.loss_step = lambda params, batch: term(None, params, batch)
  found = made.scores(None, rows, split="train")
  assert found["loss"] == pytest.approx(4 / 7)
  assert (found["a/loss"], found["b/loss"]) == (0, 1)
  assert found["a/accuracy"] == pytest.approx(200 / 3) and found["b/accuracy"] == 50
  assert found["mean"] == pytest.approx((200 / 3 + 50) / 2)
  numbers = {labels: numbers for labels, numbers in asked}
  assert sorted(set(numbers["good", "bad"])) == [0, 1, 2]
  assert sorted(set(numbers["yes", "no"])) == [3, 4, 5, 6]


# --- the registry


@pytest.fixture
def module(vocabulary, monkeypatch):
  """A module whose import has registered a task and a mixture."""
  import seqio
  import tensorflow as tf

  def source(split, shuffle_files, seed=None):
    rows = {"inputs": ["a b", "c d", "e f"], "targets": ["Good", "Bad", "Good"]}
    return tf.data.Dataset.from_tensor_slices({**rows, "note": ["x", "y", "z"]})

  def postprocess(text, example=None, is_target=False):
    return (text.lower(), example["note"].decode())

  def half_right(targets, predictions):
    right = [t == p for t, p in zip(targets, predictions, strict=True)]
    return {"own": 100 * sum(right) / len(right)}

  feature = seqio.Feature(vocabulary, add_eos=True)
  seqio.TaskRegistry.add(
    "registered_pairs",
    source=seqio.FunctionDataSource(source, splits=("train", "validation")),
    preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
    output_features={"inputs": feature, "targets": feature},
    postprocess_fn=postprocess,
    metric_fns=[half_right],
  )
  seqio.MixtureRegistry.add("registered_mixture", [("registered_pairs", 1.0)])
  monkeypatch.setitem(sys.modules, "some_tasks", types.ModuleType("some_tasks"))
  yield "some_tasks"
  seqio.TaskRegistry.remove("registered_pairs")
  seqio.MixtureRegistry.remove("registered_mixture")


@pytest.mark.parametrize("name", ["registered_pairs", "registered_mixture"])
def test_a_registered_task_gives_the_contract(vocabulary, module, name):
  own = registered.Registered(name, module)
  assert own.splits == ("train", "validation") and own.labels is None
  (first, *rest) = own.dataset(vocabulary, "train").as_numpy_iterator()
  assert set(first) == {
    *("inputs", "targets", "inputs_pretokenized", "targets_pretokenized")
  }
  assert first["inputs"].tolist() == [*vocabulary.encode("a b"), vocabulary.eos_id]
  assert len(rest) == 2 and own.streams
  (alone,) = own.tokens(vocabulary, "train", first=1)
  assert alone["inputs"].tolist() == first["inputs"].tolist()
  assert own.examples("train")[1] == {"inputs": "c d", "targets": "Bad"}


def test_registered_tasks_shuffle_and_repeat(vocabulary, module):
  own = registered.Registered("registered_pairs", module)

  def texts(**fields):
    data = own.dataset(vocabulary, "train", **fields).take(9)
    return [e["inputs_pretokenized"] for e in data.as_numpy_iterator()]

  assert texts(epochs=2) == [b"a b", b"c d", b"e f"] * 2
  shuffled = texts(shuffle=True, seed=3, epochs=None)
  assert len(shuffled) == 9 and shuffled == texts(shuffle=True, seed=3, epochs=None)


def test_registered_tasks_are_scored_by_their_own_functions(vocabulary, module):
  own = registered.Registered("registered_pairs", module)
  assert own.score(["good", "good", "x"], "train") == {"own": pytest.approx(100 / 3)}
  assert own.score(["GOOD"], "train", numbers=range(1)) == {"own": 100.0}
  named = registered.Registered("registered_pairs", module, metrics=("accuracy",))
  scores = named.score(["Good", "Bad", "x"], "train")
  assert scores == {"accuracy": pytest.approx(200 / 3)}
  mixture = registered.Registered("registered_mixture", module)
  scores = mixture.score(["good", "good", "x"], "train")
  assert scores == {"registered_pairs/own": pytest.approx(100 / 3)}


@pytest.fixture
def odd_mixture(vocabulary, module):
  """A registered mixture of two tasks, one of them with a metric that fails."""
  import seqio
  import tensorflow as tf

  def source(split, shuffle_files, seed=None):
    rows = {"inputs": ["g h", "i j", "k l", "m n"], "targets": ["1", "2", "3", "4"]}
    return tf.data.Dataset.from_tensor_slices(rows)

  def divides(targets, predictions):
    return {"ratio": len(targets) / sum(t == "none" for t in targets)}

  def hits(targets, predictions):
    right = sum(map(str.__eq__, targets, predictions))
    return {"hits": seqio.metrics.Scalar(right), "note": seqio.metrics.Text("seen")}

  def likelihood(targets, scores):
    return {"likelihood": sum(scores)}

  def equal(targets, predictions):
    return {"object": float(targets == predictions)}

  feature = seqio.Feature(vocabulary, add_eos=True)
  seqio.TaskRegistry.add(
    "registered_numbers",
    source=seqio.FunctionDataSource(source, splits=("validation",)),
    preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
    output_features={"inputs": feature, "targets": feature},
    metric_fns=[divides, likelihood, hits],
    metric_objs=[seqio.metrics.PassthroughLegacyMetric.from_metric_fn(equal)],
  )
  names = ["registered_pairs", "registered_numbers"]
  seqio.MixtureRegistry.add("registered_odd", [(name, 1.0) for name in names])
  yield registered.Registered("registered_odd", module)
  seqio.MixtureRegistry.remove("registered_odd")
  seqio.TaskRegistry.remove("registered_numbers")


def test_a_mixture_is_scored_task_by_task_and_a_failing_metric_is_a_line(
  vocabulary, odd_mixture, caplog
):
  assert odd_mixture.judged
  texts = [example["inputs"] for example in odd_mixture.examples("validation")]
  assert texts == ["g h", "a b", "i j", "c d", "k l", "e f", "m n"]
  rows = odd_mixture.tokens(vocabulary, "validation")
  assert [row["inputs_pretokenized"].decode() for row in rows] == texts
  answers = ["1", "good", "2", "x", "3", "x", "4"]
  found = odd_mixture.score(answers, "validation")
  assert found == {
    "registered_numbers/hits": 4.0,
    "registered_numbers/object": 1.0,
    "registered_pairs/own": pytest.approx(100 / 3),
  }
  said = [record.getMessage() for record in caplog.records]
  (line,) = [text for text in said if "divides" in text]
  assert "'registered_numbers', which ended in ZeroDivisionError: division" in line
  assert any("'likelihood' of the task 'registered_numbers' is" in t for t in said)
  assert odd_mixture.score(answers[:2], "validation", range(2)) == {
    "registered_numbers/hits": 1.0,
    "registered_numbers/object": 1.0,
    "registered_pairs/own": 100.0,
  }


def test_training_scores_as_eval_does(vocabulary, module, monkeypatch):
  own = registered.Registered("registered_pairs", module)
  made = evaluate.Evaluator.__new__(evaluate.Evaluator)
  made.task, made.vocabulary, made._predictors = own, vocabulary, {None: None}
  records = [{"prediction": text} for text in ("good", "good", "x")]
  monkeypatch.setattr(made, "loss", lambda params, examples: {"loss": 1.0})
  monkeypatch.setattr(made, "predict", lambda params, examples: records)
  rows = own.tokens(vocabulary, "validation")
  assert made.scores(None, rows, range(3)) == {"loss": 1.0, "own": 100 / 3}
  made.check_metric("own", None, rows)
  plan = loop.Plan(steps=1, metric="own")
  assert not plan.better({"loss": 1.0}, None)
  assert plan.better({"loss": 1.0, "own": 1.0}, None)


def test_few_shots_of_a_registered_task_keep_its_own_metrics(module):
  own = registered.Registered("registered_pairs", module)
  drawn = fewshot.FewShot(own, 2, 0)
  assert drawn.judged and not drawn.metrics
  right = [example["targets"] for example in drawn.examples("train")]
  assert drawn.score(right, "train") == {"own": 100.0}
  assert drawn.score(["good", "x", "x"], "validation")["own"] < 50
  assert mixtures.Mixture([task("a", 2), own]).judged
  assert not mixtures.Mixture([task("a", 2, metrics=())]).judged


def test_another_vocabulary_is_refused(vocabulary, module):
  import seqio

  other = seqio.SentencePieceVocabulary(VOCABULARY, extra_ids=0)
  own = registered.Registered("registered_pairs", module)
  with pytest.raises(ValueError, match="'inputs' with.*but the backbone reads"):
    own.dataset(other, "train")
  same = seqio.SentencePieceVocabulary(VOCABULARY, extra_ids=100)
  assert own.build(same) is own.provider


def test_a_copy_of_the_vocabulary_is_the_same_one(vocabulary, module, tmp_path):
  copy = tmp_path / "spiece.model"
  copy.write_bytes(pathlib.Path(VOCABULARY).read_bytes())
  own = registered.Registered("registered_pairs", module)
  ours = vocabularies.sentencepiece(str(copy))
  assert own.build(ours) is own.provider
  (first, *_) = own.tokens(ours, "train")
  assert first["inputs"].tolist() == [*ours.encode("a b"), ours.eos_id]
  with pytest.raises(ValueError, match=r"100.*backbone reads.*99 extra ids"):
    own.build(vocabularies.sentencepiece(str(copy), 99))
  with pytest.raises(ValueError, match="backbone reads bytes with 125"):
    own.build(vocabularies.byte())
  mixture = registered.Registered("registered_mixture", module)
  assert mixture.build(ours) is mixture.provider
  with pytest.raises(ValueError, match="pairs', of the mixture 'registered_"):
    mixture.build(vocabularies.byte())


def test_what_is_not_registered_is_refused(vocabulary, module):
  with pytest.raises(ValueError, match="'registered_pair', .*Near.*registered_pairs"):
    registered.Registered("registered_pair", module).build(vocabulary)
  with pytest.raises(ValueError, match="MODULE. is 'no.such'.*cannot be imported"):
    registered.Registered("registered_pairs", "no.such").build(vocabulary)
  with pytest.raises(ValueError, match="NAME. must be the name.*None"):
    registered.Registered(None)


def test_a_mixture_may_hold_a_registered_task(vocabulary, module):
  own = registered.Registered("registered_pairs", module)
  mixed = mixtures.Mixture([task("a", 2), own], (1, 1))
  rows = read(mixed.dataset(vocabulary, "train"))
  assert rows == [("a 0", 0), ("a 1", 0), ("a b", 1), ("c d", 1), ("e f", 1)]

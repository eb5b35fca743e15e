"""Tasks of SeqIO's registry."""

import pathlib

import pytest
from mixture_tools import VOCABULARY, read, task

from prompt_tuning.data import (
  mixtures,
  registered,
  vocabularies,
)
from prompt_tuning.engine import evaluate, loop


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

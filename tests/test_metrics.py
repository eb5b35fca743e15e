"""Metrics against figures worked out by hand."""

import random
import time

import pytest

from prompt_tuning.data import metric_needs, metrics


def test_unknown_name_suggests_the_nearest():
  with pytest.raises(ValueError, match="'acuracy'.*Did you mean 'accuracy'"):
    metrics.check(("exact_match", "acuracy"))


def test_counts_must_agree():
  with pytest.raises(ValueError, match="each of the 2 targets.*got 1"):
    metrics.score(("accuracy",), ["a", "b"], ["a"])
  with pytest.raises(ValueError, match="at least one"):
    metrics.score(("accuracy",), [], [])


def test_accuracy_is_a_percentage_and_ignores_outer_space():
  assert metrics.score(("accuracy", "exact_match"), ["a", "b"], [" a", "x"]) == {
    "accuracy": 50.0,
    "exact_match": 50.0,
  }


def test_f1_binary_takes_the_last_label_as_positive():
  targets = ["equivalent", "equivalent", "not_equivalent", "not_equivalent"]
  predictions = ["equivalent", "not_equivalent", "equivalent", "not_equivalent"]
  labels = ("not_equivalent", "equivalent")
  scores = metrics.score(("f1_binary",), targets, predictions[:3] + ["x"], labels)
  # one hit, one missed, one false alarm, and one more for the word outside the labels
  assert scores["f1_binary"] == pytest.approx(100 * 2 / 5)
  skewed = ["equivalent", "equivalent", "equivalent", "not_equivalent"]
  by_default = metrics.f1_binary(targets, skewed, labels=labels)["f1_binary"]
  other = metrics.f1_binary(targets, skewed, "not_equivalent", labels)["f1_binary"]
  assert by_default == pytest.approx(80.0)
  assert other == pytest.approx(100 * 2 / 3)


def test_f1_binary_counts_a_stray_prediction_as_missed_too():
  scores = metrics.f1_binary(["yes", "no"], ["x", "no"], labels=("no", "yes"))
  assert scores == {"f1_binary": 0.0}


def test_f1_macro_is_over_all_labels():
  labels = ("a", "b", "c")
  scores = metrics.score(("f1_macro",), ["a", "a", "b"], ["a", "x", "b"], labels)
  assert scores["f1_macro"] == pytest.approx(100 * (2 / 3 + 1 + 0) / 3)


def test_matthews():
  same = metrics.score(("matthews",), ["a", "b"] * 4, ["a", "b"] * 4, ("a", "b"))
  assert same["matthews"] == pytest.approx(100.0)
  # 3 right and 1 wrong of either class: (3 * 3 - 1 * 1) / 16
  targets = ["a"] * 4 + ["b"] * 4
  predictions = ["a", "a", "a", "b", "b", "b", "b", "a"]
  scores = metrics.score(("matthews",), targets, predictions, ("a", "b"))
  assert scores["matthews"] == pytest.approx(50.0)
  constant = metrics.score(("matthews",), targets, ["x", "y"] * 4, ("a", "b"))
  assert constant["matthews"] == 0.0


def test_correlations_take_words_as_minus_one():
  names = ("pearson", "spearman")
  targets = ["0.0", "1.0", "2.0", "5.0"]
  assert metrics.score(names, targets, ["0", "2", "4", "10"]) == {
    "pearson": pytest.approx(100.0),
    "spearman": pytest.approx(100.0),
  }
  odd = metrics.score(names, targets, ["high", "nan", "inf", "3"])
  assert odd == metrics.score(names, targets, ["-1", "-1", "-1", "3"])
  assert metrics.score(names, targets, ["1"] * 4) == {"pearson": 0.0, "spearman": 0.0}


def test_squad_takes_the_best_of_the_answers():
  examples = [{"references": ["The Eiffel Tower!", "tower"]}, {"references": ["x y"]}]
  targets, predictions = ["The Eiffel Tower!", "x y"], ["eiffel  tower", "x z"]
  scores = metrics.score(("squad", "token_f1"), targets, predictions, None, examples)
  assert scores == {"em": 50.0, "f1": 75.0, "token_f1": 75.0}
  # Without references the target alone counts.
  assert metrics.score(("squad",), ["a cat"], ["Cat."]) == {"em": 100.0, "f1": 100.0}
  assert metrics.score(("squad",), ["cat"], [""]) == {"em": 0.0, "f1": 0.0}


def test_rouge_and_bleu():
  scores = metrics.score(("rouge",), ["a b c d"], ["a b x d"])
  assert scores == {
    "rouge1": pytest.approx(75.0),
    "rouge2": pytest.approx(100 / 3),
    "rougeLsum": pytest.approx(75.0),
  }
  text = ["the cat sat on the mat today", "it was raining all day long"]
  assert metrics.score(("bleu",), text, text)["bleu"] == pytest.approx(100.0)
  assert metrics.score(("bleu",), text, ["", "no"])["bleu"] < 1.0


def test_multirc_groups_answers_by_question():
  examples = [{"group": group} for group in ("0", "0", "1")]
  targets, predictions = ["True", "False", "True"], ["True", "True", "True"]
  labels = ("False", "True")
  scores = metrics.score(("multirc",), targets, predictions, labels, examples)
  assert scores == {"f1a": pytest.approx(80.0), "em": 50.0}
  with pytest.raises(ValueError, match="multirc.*'group'"):
    metrics.score(("multirc",), targets, predictions, labels, [{}] * 3)


@pytest.mark.parametrize(
  ("candidate", "prediction", "label", "right"),
  [
    ("The city councilmen", "city councilmen", "True", True),
    ("the bunny", "the fuzzy bunny", "True", True),
    ("Bob", "Bob's hat", "True", False),
    ("Bob", "Bob's hat", "False", True),
    ("Ann", "Mary", "False", True),
    ("Ann", "the", "False", False),
    ("Ann", "", "True", False),
  ],
)
def test_wsc_asks_whether_the_noun_is_the_candidate(
  candidate, prediction, label, right
):
  scores = metrics.score(("wsc",), [candidate], [prediction], None, [{"label": label}])
  assert scores == {"accuracy": 100.0 * right}


@pytest.mark.parametrize("name", sorted(metrics.METRICS))
def test_no_prediction_crashes(name):
  targets = ["yes", "no", "1.5"]
  examples = [{"group": "g", "label": "True", "references": ["yes"]}] * 3
  for stray in ("", "  ", "\n", "nan", "yes no", "\U0001f600", "1e400"):
    scores = metrics.score((name,), targets, [stray] * 3, ("no", "yes"), examples)
    assert all(0 <= value < 100 for value in scores.values()), (stray, scores)


# ---- what a metric asks of a task


def rows(*targets):
  return [{"inputs": "x", "targets": target} for target in targets]


@pytest.mark.parametrize(
  ("name", "targets", "words"),
  [
    ("pearson", ["1.5", "high"], "correlates numbers.*'high' of example 1"),
    ("spearman", ["1", "nan"], "correlates numbers.*'nan'"),
    ("f1_binary", ["a", "b", "c"], "two classes.*3 different targets: .'a', 'b', 'c'"),
    ("multirc", ["a", "b"], "'multirc' needs examples with 'group'"),
    ("wsc", ["a"], "'wsc' needs examples with 'label'"),
    ("matthews", [str(i) for i in range(65)], "65 different targets.*LABELS"),
    ("f1_macro", [str(i) for i in range(65)], "65 different targets.*LABELS"),
  ],
)
def test_a_split_that_a_metric_cannot_score(name, targets, words):
  with pytest.raises(ValueError, match=f"{name}.*{words}|{words}"):
    metric_needs.check_examples((name,), rows(*targets), None, "validation")


@pytest.mark.parametrize("name", ["pearson", "f1_binary", "matthews", "rouge"])
def test_a_split_that_a_metric_can_score(name):
  metric_needs.check_examples((name,), rows("1", "2.5", "1"), None, "validation")
  metric_needs.check((name,), ("0", "1"))


def test_labels_that_a_metric_rules_out():
  with pytest.raises(ValueError, match="f1_binary.*two classes.* are 3 labels"):
    metric_needs.check(("accuracy", "f1_binary"), ("a", "b", "c"))
  with pytest.raises(ValueError, match="pearson.*numbers, but the label 'b' is none"):
    metric_needs.check(("pearson",), ("1", "b"))
  metric_needs.check(("f1_macro", "matthews"), ("a", "b", "c"))


def test_matthews_is_that_of_sklearn():
  from sklearn.metrics import matthews_corrcoef

  rng = random.Random(0)
  for _ in range(20):
    targets, said = ([rng.choice("abcd") for _ in range(30)] for _ in range(2))
    score = metrics.matthews(targets, said, "abcd")["matthews"]
    assert score == pytest.approx(100 * matthews_corrcoef(targets, said))


def test_scores_of_many_labels_take_no_longer_than_reading_them():
  labels = [str(i) for i in range(100_000)]
  start = time.monotonic()
  assert metrics.matthews(labels, labels, labels) == {"matthews": 100.0}
  assert metrics.f1_binary(labels, labels, labels=labels) == {"f1_binary": 100.0}
  assert time.monotonic() - start < 5


def test_a_correlation_of_what_overflows_is_none():
  scores = metrics.pearson(["1", "2", "3"], ["1e308", "-1e308", "1e308"])
  assert scores == {"pearson": pytest.approx(0.0, abs=1e-12)}

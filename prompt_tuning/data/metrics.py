"""Metrics by name: (targets, predictions) -> {name: score}, in percent as in T5X.

Targets and predictions are texts. A prediction that is no label, or no number, is
wrong; it never fails. Libraries are imported by the metric that needs them.

Scores follow T5 (Raffel et al., 2020, "Exploring the Limits of Transfer Learning with a
Unified Text-to-Text Transformer"), except that ROUGE is the plain mean over examples
where T5 reports the middle of a bootstrap, and that a correlation with something
constant is 0 where it is undefined.
"""

import collections
import difflib
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from prompt_tuning.data import answers
from prompt_tuning.data.label_metrics import f1_labels

Texts = Sequence[str]
Scores = dict[str, float]

# Stands for every prediction that is not among the labels.
_NO_LABEL = "\0"


def check(names: Sequence[str]) -> None:
  """Raises ValueError for a name that is no metric."""
  for name in names:
    if not isinstance(name, str) or name not in METRICS:
      near = difflib.get_close_matches(str(name), METRICS, n=1)
      hint = f" Did you mean {near[0]!r}?" if near else ""
      raise ValueError(
        f"`metrics` names {name!r}, which there is not.{hint} There are "
        f"{sorted(METRICS)}."
      )


def check_count(targets: int, predictions: int) -> None:
  """Raises ValueError unless there is one prediction for each of some targets."""
  if targets != predictions or not targets:
    raise ValueError(
      f"`predictions` must be one text for each of the {targets} targets (at least "
      f"one), got {predictions}."
    )


def resolve(name: str) -> Callable[..., Scores]:
  """The function of a metric's name."""
  check((name,))
  return METRICS[name]


def reads(name: str) -> frozenset[str]:
  """What a metric asks for beside the texts: "labels", "examples", "separator"."""
  return frozenset(inspect.signature(resolve(name)).parameters) - _TEXTS


def score(
  names: Sequence[str],
  targets: Texts,
  predictions: Texts,
  labels: Texts | None = None,
  examples: Sequence[dict[str, Any]] | None = None,
  separator: str | None = None,
) -> Scores:
  """All scores of some metrics.

  Args:
    names: keys of `METRICS`.
    targets, predictions: one text an example.
    labels: the classes, the positive one of two last.
    examples: the task's examples, for metrics that group them, accept several answers
      or ask for a class that the target does not spell.
    separator: stands between the labels of a text that names several.
  """
  check(names)
  check_count(len(targets), len(predictions))
  known = {"labels": labels, "examples": examples, "separator": separator}
  scores: Scores = {}
  for name in names:
    details = {key: known[key] for key in known if key in reads(name)}
    scores.update(METRICS[name](_stripped(targets), _stripped(predictions), **details))
  return scores


def accuracy(targets: Texts, predictions: Texts) -> Scores:
  """Share of predictions that are their target."""
  return {"accuracy": _mean(map(str.__eq__, targets, predictions))}


def exact_match(targets: Texts, predictions: Texts) -> Scores:
  """As `accuracy`, under the name that free text goes by."""
  return {"exact_match": accuracy(targets, predictions)["accuracy"]}


def f1_binary(
  targets: Texts,
  predictions: Texts,
  positive: str | None = None,
  labels: Texts | None = None,
) -> Scores:
  """F1 of one of two classes.

  Args:
    targets, predictions: texts.
    positive: the class; without it the last of `labels`, and without these the last
      target in alphabetical order.
    labels: the classes. A prediction outside them counts as the opposite of its target.
  """
  labels = labels or sorted(set(targets))
  positive = labels[-1] if positive is None else positive
  known = set(labels)
  hits = wrong = 0
  for target, prediction in zip(targets, predictions, strict=True):
    outside = prediction not in known
    predicted = (target != positive) if outside else (prediction == positive)
    hits += predicted and target == positive
    wrong += predicted != (target == positive)
  return {"f1_binary": _percent(2 * hits, 2 * hits + wrong)}


def f1_macro(targets: Texts, predictions: Texts, labels: Texts | None = None) -> Scores:
  """Mean over the classes of each one's F1 (0 for a class never seen nor predicted)."""
  from sklearn.metrics import f1_score

  value = f1_score(
    targets,
    predictions,
    labels=list(labels or sorted(set(targets))),
    average="macro",
    zero_division=0,
  )
  return {"f1_macro": 100.0 * float(value)}


def matthews(targets: Texts, predictions: Texts, labels: Texts | None = None) -> Scores:
  """Matthews correlation of any number K of classes (Gorodkin, 2004).

    (n c - sum_k t_k p_k) / sqrt((n^2 - sum_k t_k^2) (n^2 - sum_k p_k^2))

  of n examples, c of them right, with t_k targets and p_k predictions of class k. All
  predictions outside the labels are one more class.
  """
  known = set(labels or targets)
  predictions = [p if p in known else _NO_LABEL for p in predictions]
  asked, said = collections.Counter(targets), collections.Counter(predictions)
  count, right = len(targets), sum(map(str.__eq__, targets, predictions))
  above = count * right - sum(n * said[name] for name, n in asked.items())
  spread = [count**2 - sum(n * n for n in c.values()) for c in (asked, said)]
  return {"matthews": _percent(above, math.sqrt(spread[0] * spread[1]))}


def pearson(targets: Texts, predictions: Texts) -> Scores:
  """Pearson correlation of numbers; a prediction that is none counts as -1."""
  return {"pearson": _correlation("pearsonr", targets, predictions)}


def spearman(targets: Texts, predictions: Texts) -> Scores:
  """Spearman correlation of numbers; a prediction that is none counts as -1."""
  return {"spearman": _correlation("spearmanr", targets, predictions)}


def token_f1(
  targets: Texts,
  predictions: Texts,
  examples: Sequence[dict[str, Any]] | None = None,
) -> Scores:
  """Mean F1 of words, at best over the accepted answers, normalised as SQuAD does."""
  return {"token_f1": squad(targets, predictions, examples)["f1"]}


def squad(
  targets: Texts,
  predictions: Texts,
  examples: Sequence[dict[str, Any]] | None = None,
) -> Scores:
  """SQuAD's exact match and F1 of words (Rajpurkar et al., 2016).

  An example's `references` are accepted, or else its target.
  """
  matches, overlaps = [], []
  for i, prediction in enumerate(predictions):
    accepted = (examples[i].get("references") if examples else None) or [targets[i]]
    said = answers.words(prediction)
    asked = [answers.words(answer) for answer in accepted]
    matches.append(said in asked)
    overlaps.append(max(answers.overlap(answer, said) for answer in asked))
  return {"em": _mean(matches), "f1": _mean(overlaps)}


def rouge(targets: Texts, predictions: Texts) -> Scores:
  """Mean F1 of rouge1, rouge2 and rougeLsum (Lin, 2004), sentences split at " . "."""
  from rouge_score import rouge_scorer

  names = ("rouge1", "rouge2", "rougeLsum")
  scorer = rouge_scorer.RougeScorer(names)
  totals = dict.fromkeys(names, 0.0)
  for pair in zip(targets, predictions, strict=True):
    scores = scorer.score(*(text.replace(" . ", " .\n") for text in pair))
    for name in names:
      totals[name] += scores[name].fmeasure
  return {name: 100.0 * total / len(targets) for name, total in totals.items()}


def bleu(targets: Texts, predictions: Texts) -> Scores:
  """Corpus BLEU of SacreBLEU (Post, 2018), international tokenisation, cased."""
  import sacrebleu

  result = sacrebleu.corpus_bleu(
    list(predictions), [list(targets)], tokenize="intl", smooth_method="exp"
  )
  return {"bleu": float(result.score)}


def multirc(
  targets: Texts,
  predictions: Texts,
  labels: Texts | None = None,
  examples: Sequence[dict[str, Any]] | None = None,
) -> Scores:
  """MultiRC's F1 over all answers and exact match of whole questions.

  Raises:
    ValueError: if the examples do not say their `group`, the question.
  """
  groups = details(examples, "group", "multirc")
  whole: dict[Any, bool] = {}
  for group, target, prediction in zip(groups, targets, predictions, strict=True):
    whole[group] = whole.get(group, True) and target == prediction
  f1 = f1_binary(targets, predictions, labels=labels)["f1_binary"]
  return {"f1a": f1, "em": _mean(whole.values())}


def wsc(
  targets: Texts,
  predictions: Texts,
  examples: Sequence[dict[str, Any]] | None = None,
) -> Scores:
  """Accuracy of T5's simple Winograd format.

  The target is a candidate noun, and the prediction the noun that the pronoun stands
  for: the model says "True" where both are the same but for determiners and words that
  one leaves out.

  Raises:
    ValueError: if the examples do not say their `label`.
  """
  labels = details(examples, "label", "wsc")
  said = map(answers.same_noun, targets, predictions)
  right = [answer == label for answer, label in zip(said, labels, strict=True)]
  return {"accuracy": _mean(right)}


_TEXTS = frozenset({"targets", "predictions", "positive"})
METRICS: dict[str, Callable[..., Scores]] = {
  function.__name__: function
  for function in (
    accuracy,
    bleu,
    exact_match,
    f1_binary,
    f1_labels,
    f1_macro,
    matthews,
    multirc,
    pearson,
    rouge,
    spearman,
    squad,
    token_f1,
    wsc,
  )
}


def details(examples: Sequence[Any] | None, key: str, name: str) -> list:
  """What each example says under a key.

  Raises:
    ValueError: if some example does not say it.
  """
  if examples is None or any(key not in example for example in examples):
    raise ValueError(
      f"The metric {name!r} needs examples with {key!r}, which this task's have not. "
      "Use it with the task of that name in `prompt_tuning/data/glue.py`."
    )
  return [example[key] for example in examples]


def _stripped(texts: Texts) -> list[str]:
  return [text.strip() for text in texts]


def _mean(values: Any) -> float:
  values = list(values)
  return 100.0 * float(sum(values)) / len(values)


def _percent(part: float, whole: float) -> float:
  return 100.0 * part / whole if whole else 0.0


def _number(text: str) -> float:
  try:
    value = float(text)
  except ValueError:
    return -1.0
  return value if math.isfinite(value) else -1.0


def _correlation(name: str, targets: Texts, predictions: Texts) -> float:
  from scipy import stats

  left = np.array([_number(text) for text in targets])
  right = np.array([_number(text) for text in predictions])
  with np.errstate(all="ignore"):
    if np.ptp(left) == 0 or np.ptp(right) == 0:
      return 0.0
    value = float(getattr(stats, name)(left, right)[0])
  # Numbers as large as floats go leave nothing of it.
  return 100.0 * value if math.isfinite(value) else 0.0

"""`evaluate`: the scores of a prompt on examples that are at hand."""

import os
from collections.abc import Sequence
from typing import Any

from prompt_tuning import answer, arguments, keywords, sources
from prompt_tuning import eval as verb
from prompt_tuning.data import given
from prompt_tuning.data.batches import check_targets
from prompt_tuning.data.lists import Lists
from prompt_tuning.engine.examples import read
from prompt_tuning.engine.product import Product
from prompt_tuning.engine.sharding import DEFAULT

SPLIT = "test"


def evaluate(
  model: Any,
  prompt: Product | None,
  data: Any,
  labels: Sequence[str] | None = None,
  metrics: Sequence[str] | str | None = None,
  *,
  inputs: str | None = None,
  targets: str | None = None,
  batch_size: int = 64,
) -> dict[str, float]:
  """Loss and metrics of a prompt on examples, answered as in training.

  Args:
    model: of `load_model`. prompt: of `tune` or `load_prompt`; None for the bare model.
    data: (input, target) pairs, a frame or a file, as `train` of `tune`.
    labels: to choose among; None takes those that the prompt was trained on.
    metrics: names in `data/metrics.py`; None takes those of the training, or accuracy
      where there are labels, or exact_match.
    inputs, targets: of rows with named columns, see `tune`; None reads them, and the
      inputs of pairs, as training did.
    batch_size: rows of a batch.

  Raises:
    ValueError: for examples, labels or metrics that do not fit.

  >>> import prompt_tuning as pt
  >>> model = pt.load_model("mini")
  >>> pairs = [("a lovely film", "good"), ("a dull film", "bad")]
  >>> sorted(pt.evaluate(model, None, pairs, labels=["bad", "good"]))
  ['accuracy', 'cross_entropy', 'loss', 'token_accuracy']
  """
  arguments.check_model(model, prompt)
  session = answer.session(model.loaded, prompt)
  known = session.known
  pairs = _pairs(session, data, inputs, targets)
  size = arguments.whole("batch_size", batch_size, 1)
  labels = known.labels if labels is None else arguments.labels(labels)
  if metrics is None:
    said = {} if prompt is None else prompt.card.get("task", {})
    metrics = said.get("metrics") or (("accuracy",) if labels else ("exact_match",))
  with keywords.in_words():
    task = Lists(test=pairs, labels=labels, metrics=metrics)
    output = verb.card_output(session, task)
    if output is None:
      output = session.choice() if labels else session.words()
    session.answering(task.labels, output)
    numbered = session.model.head is not None
    examples = read(task, model.loaded.vocabulary, SPLIT, None, numbered)
    given.checked(examples, session.wants, SPLIT)
    if not numbered:
      check_targets(examples, model.loaded.vocabulary, SPLIT, task.labels)
    scores, _ = verb.answered(
      session, task, examples, SPLIT, output, size, DEFAULT.over()
    )
  return dict(scores)


def _pairs(
  session: answer.Session, data: Any, inputs: str | None, targets: str | None
) -> Sequence[arguments.Pair]:
  """Whole inputs and targets, by the prompt's own template where none is given."""
  own = session.known.reading
  if isinstance(data, str | os.PathLike) or sources.names_of(data) is not None:
    if own is not None:
      inputs = own.inputs if inputs is None else inputs
      targets = own.targets if targets is None else targets
    return sources.read("data", data, inputs, targets).pairs
  pairs = sources.read("data", data, inputs, targets).pairs
  whole = session.texts([text for text, _ in pairs])
  return [(text, target) for text, (_, target) in zip(whole, pairs, strict=True)]

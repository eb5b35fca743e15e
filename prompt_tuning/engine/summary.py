"""What a run says when it opens, before the first compile, and when it closes."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from prompt_tuning.core import trainable as branches
from prompt_tuning.engine import listed
from prompt_tuning.engine.curves import LOSSES
from prompt_tuning.engine.ready import Ready

# Labels that are counted one by one.
MOST_LABELS = 8


def opening(ready: Ready, facts: Mapping[str, Any], folder: Any) -> str:
  """The lines in front of a run: what it is made of, and where it goes.

  Args:
    ready: the run. facts: of `card_facts`. folder: MODEL_DIR.
  """
  total = branches.count(ready.params)
  trained = branches.count(branches.split(ready.params, ready.recipe.trainable)[0])
  share = f" ({listed.share(trained, total)})" if trained else ""
  task, plan = ready.evaluator.task, ready.recipe.plan
  backbone = facts["backbone"]
  rows = [
    ("backbone", f"{backbone['name']} ({backbone['family']})"),
    ("method", facts["method"]),
    ("trains", f"{trained:,} of {total:,} numbers{share}"),
    ("task", f"{task.name}: {_sizes(ready)}"),
    ("steps", f"{plan.steps:,} of {ready.recipe.batch_size} rows"),
    ("labels", _labels(ready)),
    ("example", _example(ready)),
    ("devices", _devices()),
    ("output", str(folder)),
  ]
  return "\n".join(f"{name:<10}{words}" for name, words in rows if words)


def _sizes(ready: Ready) -> str:
  found = []
  if isinstance(ready.source, Sequence):
    found.append(f"{len(ready.source):,} train")
  elif ready.source is not None:
    found.append("a stream to train on")
  if ready.validation is not None:
    found.append(f"{len(ready.validation.examples):,} validation")
  return ", ".join(found) or "no examples"


def _labels(ready: Ready) -> str:
  """Each label and how many training examples have it."""
  task = ready.evaluator.task
  if not task.labels or not isinstance(ready.source, Sequence):
    return ""
  vocabulary = ready.evaluator.vocabulary
  counts = collections.Counter(tuple(map(int, one["targets"])) for one in ready.source)
  named = collections.Counter()
  for ids, count in counts.items():
    named[vocabulary.decode(ids).strip()] += count
  words = [f"{name} {count:,}" for name, count in named.most_common(MOST_LABELS)]
  more = len(named) - len(words)
  return ", ".join(words) + (f" and {more} more" if more > 0 else "")


def _example(ready: Ready) -> str:
  """The first example as the model reads it, its prompt's slots in brackets."""
  source = ready.source if isinstance(ready.source, Sequence) else ()
  if not len(source):
    return ""
  vocabulary, example = ready.evaluator.vocabulary, source[0]
  features = ready.layout.convert(example)
  ids_T = np.asarray(features["inputs"])
  index_T = np.asarray(features.get("prompt_index", np.full(ids_T.shape, -1)))
  words = listed.cell(_decoded(ids_T, index_T, vocabulary))
  target = vocabulary.decode([int(i) for i in example["targets"]]).strip()
  return f"{words} -> {target}"


def _decoded(ids_T: np.ndarray, index_T: np.ndarray, vocabulary: Any) -> str:
  """Text of ids; a run of reserved positions is "[P slots]"."""
  slots = int((index_T >= 0).sum())
  if not slots:
    return vocabulary.decode([int(i) for i in ids_T])
  first = int(np.argmax(index_T >= 0))
  before = vocabulary.decode([int(i) for i in ids_T[:first]])
  after = vocabulary.decode([int(i) for i in ids_T[first + slots :]])
  return f"{before} [{slots} prompt slots] {after}".strip()


def _devices() -> str:
  counts = collections.Counter(device.device_kind for device in jax.devices())
  return ", ".join(f"{count} {kind}" for kind, count in counts.items())


def closing(lines: Sequence[Mapping[str, Any]], best: int) -> str:
  """A table of validation: each score first, at the best step and last.

  Args:
    lines: of metrics.jsonl. best: the step that is kept.
  """
  seen = [line for line in lines if line["split"] == "validation"]
  if not seen:
    return ""
  kept = next((line for line in seen if line["step"] == best), seen[-1])
  columns = {
    f"step {seen[0]['step']}": seen[0],
    f"best, step {kept['step']}": kept,
    f"step {seen[-1]['step']}": seen[-1],
  }
  names = [name for name in kept if name not in ("step", "split")]
  names.sort(key=lambda name: name in LOSSES)
  rows = [
    {"validation": name, **{head: line.get(name) for head, line in columns.items()}}
    for name in names
  ]
  return listed.table(["validation", *columns], rows)

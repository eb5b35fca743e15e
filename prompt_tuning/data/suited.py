"""Whether the examples of a split suit a layout and a vocabulary."""

import logging
import string
from collections.abc import Iterable, Sequence
from typing import Any

from prompt_tuning.data import vocabularies
from prompt_tuning.data.features import Layout
from prompt_tuning.data.texts import short

Example = dict[str, Any]


def check_lengths(examples: Sequence[Example], layout: Layout, split: str) -> None:
  """Counts what is longer than the layout; refuses it unless told to truncate.

  Raises:
    ValueError: if the split is empty, if an example is too long and `layout.truncate`
      is off, or if nothing of a target but its end mark would be left.
  """
  if not examples:
    raise ValueError(f"The split {split!r} holds no examples.")
  for name in ("inputs", "targets") if layout.form.writes else ("inputs",):
    longest = max(len(example[name]) for example in examples)
    limit = getattr(layout, name)
    over = sum(len(example[name]) > limit for example in examples)
    if not over:
      continue
    facts = (
      f"{over} of {len(examples)} examples of the split {split!r} have {name} longer "
      f"than the {limit} of TASK_FEATURE_LENGTHS (the longest: {longest})."
    )
    if not layout.truncate:
      raise ValueError(
        f"{facts} Raise TASK_FEATURE_LENGTHS[{name!r}], or set TRUNCATE = True."
      )
    if limit == 1:
      raise ValueError(
        f"{facts} TRUNCATE would leave nothing but end marks. Raise "
        f"TASK_FEATURE_LENGTHS[{name!r}]."
      )
    logging.warning("%s They are cut.", facts)


def check_labels(labels: Sequence[str] | None, vocabulary: Any) -> None:
  """Refuses labels that the vocabulary cannot write.

  Raises:
    ValueError: naming the first label that has unknown pieces alone.
  """
  for label in labels or ():
    if _unknown(vocabulary.encode(label), vocabulary):
      raise ValueError(_unknown_text(f"The label {label!r} of the task", label))


def check_targets(
  examples: Sequence[Example],
  vocabulary: Any,
  split: str,
  labels: Sequence[str] | None = None,
) -> None:
  """Refuses targets that the vocabulary cannot write, or that say nothing.

  Targets that it writes, but does not give back as they are, are counted and said:
  metrics of whole answers count even a perfect answer wrong.

  Args:
    examples: tokenised. vocabulary: of the backbone. split: its name, for messages.
    labels: targets that are chosen, not written, and so given back as they are.

  Raises:
    ValueError: naming the first target that is empty or has unknown pieces alone.
  """
  # Targets repeat: each is looked at once.
  faults: dict[str, str | None] = dict.fromkeys(labels or ())
  changed, first = 0, None
  for number, example in enumerate(examples):
    text = example.get("targets_pretokenized", b"")
    text = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
    if text not in faults or not text:
      ids = example["targets"]
      where = f"The target {short(text)} of example {number} of the split {split!r}"
      _check_target(ids, text, vocabulary, where)
      faults[text] = _changed(ids, text, vocabulary)
    if faults[text] is not None:
      changed, first = changed + 1, first or text
  if first is not None:
    logging.warning(
      "%d of %d targets of the split %r are not given back by this backbone's "
      "vocabulary as they are: %s is read as %s. Metrics that compare whole answers "
      "count them wrong, however well the model answers. Change them (`label_map` "
      "does), or choose among LABELS.",
      changed,
      len(examples),
      split,
      short(first),
      short(faults[first]),
    )


def _check_target(ids: Any, text: str, vocabulary: Any, where: str) -> None:
  if _unknown(ids, vocabulary):
    raise ValueError(_unknown_text(where, text))
  if all(int(piece) == vocabulary.eos_id for piece in ids):
    raise ValueError(
      f"{where} is empty: there is nothing to learn or to compare with. Give each "
      "example a target (`Files.targets`, TARGETS in gin, says which column)."
    )


def _changed(ids: Any, text: str, vocabulary: Any) -> str | None:
  """What the vocabulary makes of a text where that is another one, else None."""
  if not text:
    return None
  back = vocabularies.decode(vocabulary, ids)
  return None if back == text.strip() else back


def _unknown(ids: Iterable[int], vocabulary: Any) -> bool:
  """Whether ids hold unknown pieces, and else nothing but space and end marks."""
  unknown = getattr(vocabulary, "unk_id", None)
  pieces = {int(piece) for piece in ids}
  if unknown is None or unknown not in pieces:
    return False
  rest = pieces - {unknown, vocabulary.eos_id}
  return not any(vocabulary.decode([piece]).strip() for piece in rest)


def _unknown_text(what: str, text: str) -> str:
  characters = "".join(sorted(set(text) - set(string.whitespace)))
  return (
    f"{what} cannot be written with this backbone's vocabulary: all its pieces are "
    f"unknown (characters {short(characters)}). Give it another word (`label_map` "
    "does), or use a backbone whose vocabulary has these characters."
  )

"""What a caller of `tune` wants: labels, metrics and output, given or guessed."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from prompt_tuning import arguments, keywords
from prompt_tuning.core.labels import parts
from prompt_tuning.data.lists import Lists
from prompt_tuning.data.tabular import Tabular
from prompt_tuning.engine import config
from prompt_tuning.outputs.output import Output
from prompt_tuning.sources import Source

# At most so many different targets make a list of labels.
MOST_LABELS = 64

# What `output` may be called -> the file of gin/outputs/; "none" scores the loss alone.
OUTPUTS = {
  "choice": "choice",
  "greedy": "text_greedy",
  "beam": "text_beam",
  "sample": "text_sample",
  "label": "label",
  "labels": "labels",
  "number": "number",
  "none": None,
}
# Those that a head answers; each has an objective of its name.
HEADED = ("label", "labels", "number")
SEPARATOR = "|"


@dataclasses.dataclass(frozen=True)
class Wish:
  """What a caller of `tune` asks for, checked; arguments as there.

  Attributes:
    task: of the pairs, with labels and metrics. guessed: whether the labels are.
    folder: MODEL_DIR, or None.
  """

  method: str
  init: str | None
  steps: int
  seed: int
  task: Lists
  guessed: bool
  output: Any
  optimizer: Any
  overrides: Mapping[str, Any]
  folder: str | None = None

  @property
  def validated(self) -> bool:
    return "validation" in self.task.splits

  @property
  def headed(self) -> str | None:
    """Which of `HEADED` it is, if any."""
    return _headed(self.output)


def wished(
  given: Source,
  judged: Source | None,
  labels: Any,
  metrics: Any,
  output: Any,
  writes: bool = True,
  **rest: Any,
) -> Wish:
  """The wish, with labels, metrics and output filled in; arguments as of `tune`.

  Where the backbone `writes` nothing, a head answers unless something else is asked.

  Args:
    given, judged: the examples of `train` and `validation`.

  Raises:
    ValueError: for labels, metrics or an output that do not fit.
  """
  train = given.pairs
  validation = None if judged is None else judged.pairs
  _check_output(output, validation is not None)
  brings = not writes or config.brings(rest["method"], "gin/heads/")
  separator = _separator(output, rest["overrides"])
  named = output in (None, "choice", "label", "labels")
  chooses = named or getattr(output, "labelled", False)
  guessed = labels is None and chooses
  if guessed:
    labels = _guess(train, validation or [], separator)
  if labels is None and chooses and output is not None:
    count = len({target for _, target in train})
    raise ValueError(
      f"`output` is a choice among labels, but {count} different targets of "
      f"{len(train)} are not taken for labels. Give labels=."
    )
  if labels is not None:
    labels = arguments.labels(labels)
  if output is None:
    words = ("label", "number") if brings else ("choice", "greedy")
    output = words[not labels]
  if metrics is None:
    written = output not in ("none", "number") and validation is not None
    metrics = ("accuracy",) if labels else ("exact_match",) if written else ()
  elif output == "none":
    raise ValueError(
      '`metrics` score answers, but `output` is "none". Leave one of them out.'
    )
  with keywords.in_words():
    splits = {"train": train, "validation": validation}
    asked = {"labels": labels, "metrics": metrics, "separator": separator}
    if given.inputs is None:
      task = Lists(**splits, **asked)
    else:
      read = {"inputs": given.inputs, "targets": given.targets}
      task = Tabular(**splits, **asked, **read)
  return Wish(task=task, guessed=guessed and labels is not None, output=output, **rest)


def _check_output(output: Any, validated: bool) -> None:
  if output is None:
    return
  if not validated and _headed(output) is None:
    raise ValueError("`output` answers validation, but `validation` is None.")
  if isinstance(output, str) and output not in OUTPUTS:
    raise ValueError(config.nearest("output", output, set(OUTPUTS)))
  if not isinstance(output, str | Output):
    raise ValueError(
      f"`output` is {output!r}; give one of {list(OUTPUTS)}, or a setting of "
      "`prompt_tuning.outputs` such as text.Greedy(8)."
    )


def _headed(output: Any) -> str | None:
  kind = output.kind if getattr(output, "headed", False) else output
  return kind if kind in HEADED else None


def _separator(output: Any, overrides: Mapping[str, Any]) -> str | None:
  """What stands between the labels of a target, where it may name several."""
  if _headed(output) != "labels":
    return None
  given = getattr(output, "separator", SEPARATOR)
  return overrides.get("label_separator", given)


def _guess(
  train: Sequence[arguments.Pair],
  validation: Sequence[arguments.Pair],
  separator: str | None = None,
) -> tuple[str, ...] | None:
  """The targets as labels, where they are few and repeat, as they must in `train`."""
  if separator is not None:
    every = [*train, *validation]
    return tuple(sorted({one for _, text in every for one in parts(text, separator)}))

  def repeat(pairs: Sequence[arguments.Pair]) -> bool:
    return len({target for _, target in pairs}) <= len(pairs) // 2

  every = [*train, *validation]
  found = {target for _, target in every}
  few = 1 < len(found) <= MOST_LABELS
  return tuple(sorted(found)) if few and repeat(train) and repeat(every) else None

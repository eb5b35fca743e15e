"""What a caller of `tune` wants: labels, metrics and output, given or guessed."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from prompt_tuning import arguments, keywords
from prompt_tuning.data.lists import Lists
from prompt_tuning.engine import config
from prompt_tuning.outputs.output import Output

# At most so many different targets make a list of labels.
MOST_LABELS = 64

# What `output` may be called -> the file of gin/outputs/; "none" scores the loss alone.
OUTPUTS = {
  "choice": "choice",
  "greedy": "text_greedy",
  "beam": "text_beam",
  "sample": "text_sample",
  "none": None,
}


@dataclasses.dataclass(frozen=True)
class Wish:
  """What a caller of `tune` asks for, checked; arguments as there.

  Attributes:
    task: of the pairs, with labels and metrics. guessed: whether the labels are.
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

  @property
  def validated(self) -> bool:
    return "validation" in self.task.splits


def wished(
  train: Any, validation: Any, labels: Any, metrics: Any, output: Any, **rest: Any
) -> Wish:
  """The wish, with labels, metrics and output filled in; arguments as of `tune`.

  Raises:
    ValueError: for pairs, labels, metrics or an output that do not fit.
  """
  train = arguments.pairs("train", train)
  if validation is not None:
    validation = arguments.pairs("validation", validation)
  _check_output(output, validation is not None)
  chooses = output in (None, "choice") or getattr(output, "labelled", False)
  guessed = labels is None and chooses
  labels = _guess(train, validation or []) if guessed else labels
  if labels is None and chooses and output is not None:
    count = len({target for _, target in train})
    raise ValueError(
      f"`output` is a choice among labels, but {count} different targets of "
      f"{len(train)} are not taken for labels. Give labels=."
    )
  if labels is not None:
    labels = arguments.labels(labels)
  if output is None:
    output = "choice" if labels else "greedy"
  if metrics is None:
    written = output != "none" and validation is not None
    metrics = ("accuracy",) if labels else ("exact_match",) if written else ()
  elif output == "none":
    raise ValueError(
      '`metrics` score answers, but `output` is "none". Leave one of them out.'
    )
  with keywords.in_words():
    task = Lists(train=train, validation=validation, labels=labels, metrics=metrics)
  return Wish(task=task, guessed=guessed and labels is not None, output=output, **rest)


def _check_output(output: Any, validated: bool) -> None:
  if output is None:
    return
  if not validated:
    raise ValueError("`output` answers validation, but `validation` is None.")
  if isinstance(output, str) and output not in OUTPUTS:
    raise ValueError(config.nearest("output", output, set(OUTPUTS)))
  if not isinstance(output, str | Output):
    raise ValueError(
      f"`output` is {output!r}; give one of {list(OUTPUTS)}, or a setting of "
      "`prompt_tuning.outputs` such as text.Greedy(8)."
    )


def _guess(
  train: Sequence[arguments.Pair], validation: Sequence[arguments.Pair]
) -> tuple[str, ...] | None:
  """The targets as labels, where they are few and repeat, as they must in `train`."""

  def repeat(pairs: Sequence[arguments.Pair]) -> bool:
    return len({target for _, target in pairs}) <= len(pairs) // 2

  every = [*train, *validation]
  found = {target for _, target in every}
  few = 1 < len(found) <= MOST_LABELS
  return tuple(sorted(found)) if few and repeat(train) and repeat(every) else None

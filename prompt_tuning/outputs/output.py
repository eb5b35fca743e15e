"""What a kind of answer is to those who run it: checks, a program, and records.

Whoever evaluates, answers or serves asks an output for a pure program, compiles it,
fetches what it gives, and hands that back to be worded. Nobody else knows a kind.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

from prompt_tuning.core.ids import MARKS, Ids
from prompt_tuning.outputs.choice import Choice
from prompt_tuning.outputs.classes import Label, Labels, Number
from prompt_tuning.outputs.text import Beam, Greedy, Sample

# (params, batch, numbers [B]) -> arrays by name, a row an example. The numbers count
# examples, for what is drawn; a key in their place is drawn with, None is the seed's.
Program = Callable[[Any, Any, Any], dict[str, Any]]
Names = Sequence[str] | None


@runtime_checkable
class Output(Protocol):
  """A setting of predictions: a frozen dataclass of plain fields, which cards keep.

  Attributes:
    kind: its name in cards.
    serves: the name of its program in what is exported.
    labelled: whether it chooses among the task's labels, and so needs some.
    headed: whether the model's head answers, so that the labels are those it learned.
  """

  kind: ClassVar[str]
  serves: ClassVar[str]
  labelled: ClassVar[bool]
  headed: ClassVar[bool]

  def check(self, model: Any, labels: Names) -> None:
    """Raises ValueError for a model or labels that it cannot answer with."""

  def program(
    self, model: Any, labels: Names, encode: Callable[[str], Sequence[int]]
  ) -> Program:
    """The pure function that answers; its arrays are what `records` takes.

    Args:
      model: `core.model.PromptedModel`. labels: of the task, or None.
      encode: text -> piece ids without an end mark.
    """

  def records(
    self,
    arrays: Any,
    labels: Names,
    decode: Callable[[Sequence[int]], str],
    marks: Ids = MARKS,
  ) -> list[dict[str, Any]]:
    """One record a row: `prediction`, a text, and what it goes by.

    Args:
      arrays: of `program`, on the host. labels: those it was made with.
      decode: piece ids -> text. marks: what ends and pads (`Spec.ids`).
    """

  def ids(
    self,
    arrays: Any,
    labels: Names,
    encode: Callable[[str], Sequence[int]],
    marks: Ids = MARKS,
  ) -> tuple[Any, Any]:
    """The answers as ids [B U] and their scores [B], for whoever takes no text.

    Args:
      arrays: of `program`, traced or not. labels, encode: as there. marks: see above.
    """


# What a card may name.
KINDS: Mapping[str, type] = {
  kind.kind: kind for kind in (Choice, Greedy, Sample, Beam, Label, Labels, Number)
}


def said(output: Any) -> dict[str, Any] | None:
  """What a card says of an output; None for none, and for one of another's code."""
  if type(output) not in KINDS.values():
    return None
  return {"kind": output.kind, **dataclasses.asdict(output)}


def choosing(output: Any, normalize_by_length: bool | None = None) -> Any:
  """How labels are scored: as an output says if it is of labels, or by likelihood.

  Args:
    output: that of the training, or None.
    normalize_by_length: see `Choice`; None leaves it as it is.

  Raises:
    ValueError: where a head answers, for which labels have no length.
  """
  found = output if output is not None and output.labelled else Choice()
  if normalize_by_length is None:
    return found
  if found.headed:
    raise ValueError(
      f"`normalize_by_length` is {normalize_by_length!r}, but a head answers, for "
      "which labels have no length. Leave it out."
    )
  return dataclasses.replace(found, normalize_by_length=normalize_by_length)


def writing(output: Any, steps: int | None, most: int) -> Any:
  """How text is written: as an output says if it writes, or greedily.

  A head's answers are texts, too, where nobody asks for some tokens.

  Args:
    output: that of the training, or None.
    steps: tokens at the most, by the caller; None for those of `output`, or `most`.
  """
  chooses = output is None or (output.labelled and not output.headed)
  if steps is None and not chooses:
    return output
  return Greedy(most if steps is None else steps)

"""Answers of a head: a label, the labels that hold, or a number."""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning.core.forward import Forward
from prompt_tuning.core.ids import MARKS, Ids
from prompt_tuning.outputs.words import said


class _OfHead(abc.ABC):
  """What the answers of a head share."""

  serves: ClassVar[str] = "classify"
  headed: ClassVar[bool] = True
  labelled: ClassVar[bool] = True

  def check(self, model: Any, labels: Sequence[str] | None) -> None:
    """Raises ValueError without a head, or where it has other classes."""
    head = getattr(model, "head", None)
    if head is None:
      raise ValueError(
        f"`OUTPUT` is answered by a head ({type(self).__name__}), but there is none "
        "(`HEAD` is None). Include gin/heads/pooled.gin, or a method that brings one."
      )
    count = len(labels or ()) if self.labelled else 1
    if head.classes != count:
      raise ValueError(
        f"The head (HEAD) has {head.classes} classes, but `OUTPUT` is one of "
        f"{'the labels (LABELS) ' + str(list(labels or ())) if self.labelled else 1}. "
        "Set LABELS to those that the head is trained for."
      )

  def program(self, model: Any, labels: Any, encode: Any = None) -> Any:
    """(params, batch, numbers) -> `scores`, see `scores`."""

    def answer(params: Any, batch: Any, numbers: Any) -> Any:
      return {"scores": self.scores(Forward(model, params, batch).head)}

    return answer

  @abc.abstractmethod
  def scores(self, logits_RC: Any) -> Any:
    """What a record says of what the head said."""

  def records(
    self, arrays: Any, labels: Any, decode: Any = None, marks: Ids = MARKS
  ) -> list[dict[str, Any]]:
    """What the head says of each row, see `outputs.words.said`, and its scores."""
    scores = np.asarray(arrays["scores"])
    texts = said(scores, labels, self.kind, **dataclasses.asdict(self))
    if not self.labelled:
      return [
        {"prediction": text, "score": float(x)}
        for text, x in zip(texts, scores, strict=True)
      ]
    return [
      {"prediction": text, "scores": dict(zip(labels, map(float, row), strict=True))}
      for text, row in zip(texts, scores, strict=True)
    ]

  def ids(
    self,
    arrays: Any,
    labels: Any,
    encode: Callable[[str], Sequence[int]],
    marks: Ids = MARKS,
  ) -> tuple[Any, Any]:
    """A head writes no ids.

    Raises:
      ValueError: always.
    """
    raise ValueError(
      "`OUTPUT` is answered by a head, which writes no ids. Use `python -m "
      "prompt_tuning.eval` or `prompt_tuning.infer`."
    )


@dataclasses.dataclass(frozen=True)
class Label(_OfHead):
  """The likeliest of K labels; its scores are log-probabilities [B K]."""

  kind: ClassVar[str] = "label"

  def scores(self, logits_RC: Any) -> Any:
    return jax.nn.log_softmax(logits_RC)


@dataclasses.dataclass(frozen=True)
class Labels(_OfHead):
  """Every label whose probability reaches a threshold; its scores are these [B K].

  Attributes:
    threshold: of a probability; it moves precision and recall alone.
    separator: stands between the labels of an answer, as in the task's targets.
  """

  kind: ClassVar[str] = "labels"
  threshold: float = 0.5
  separator: str = "|"

  def __post_init__(self) -> None:
    if not 0 < self.threshold < 1:
      raise ValueError(
        f"`Labels.threshold` (THRESHOLD) must be in (0, 1), got {self.threshold!r}."
      )
    if not self.separator:
      raise ValueError(
        "`Labels.separator` (LABEL_SEPARATOR) is empty; give what stands between "
        "labels, such as '|'."
      )

  def scores(self, logits_RC: Any) -> Any:
    return jax.nn.sigmoid(logits_RC)


@dataclasses.dataclass(frozen=True)
class Number(_OfHead):
  """A number, with six digits as the text of an answer."""

  kind: ClassVar[str] = "number"
  labelled: ClassVar[bool] = False

  def scores(self, logits_RC: Any) -> Any:
    return jnp.asarray(logits_RC)[:, 0]

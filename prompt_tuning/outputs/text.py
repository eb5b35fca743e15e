"""Answers in words: how to decode.

The settings say which loop of `decoding/decode.py` runs and with what.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax

from prompt_tuning.core.ids import MARKS, Ids
from prompt_tuning.decoding import decode as decoding
from prompt_tuning.outputs.words import answers as answers
from prompt_tuning.outputs.words import words as words

LENGTH_PENALTIES = ("brevity", "power")


class _Text:
  """What all that write share."""

  loop: ClassVar[str]
  serves: ClassVar[str] = "generate"
  labelled: ClassVar[bool] = False
  headed: ClassVar[bool] = False

  def check(self, model: Any, labels: Any) -> None:
    """Any model writes."""

  def program(self, model: Any, labels: Any, encode: Any = None) -> Any:
    """(params, batch, numbers) -> `ids` and `log_probability` of `decoding.decode`."""

    def write(params: Any, batch: Any, numbers: Any) -> Any:
      keys = self._keys(numbers)
      ids, log_probs = decoding.generate(model, params, batch, self, keys)
      return {"ids": ids, "log_probability": log_probs}

    return write

  def _keys(self, numbers: Any) -> Any:
    """The noise of each row, which hangs on the number of its example."""
    return None

  def records(
    self,
    arrays: Any,
    labels: Any,
    decode: Callable[[Sequence[int]], str],
    marks: Ids = MARKS,
  ) -> list[dict[str, Any]]:
    """The text of each row, and its log-probability; the best of several."""
    ids, best_B = self.ids(arrays)
    return [
      {"prediction": answer, "log_probability": float(value)}
      for answer, value in zip(answers(ids, decode, marks), best_B, strict=True)
    ]

  def ids(
    self, arrays: Any, labels: Any = None, encode: Any = None, marks: Ids = MARKS
  ) -> Any:
    """The ids [B U] and log-probabilities [B]; of several sequences, the best."""
    ids, log_probs = arrays["ids"], arrays["log_probability"]
    return (ids[:, 0], log_probs[:, 0]) if ids.ndim == 3 else (ids, log_probs)


@dataclasses.dataclass(frozen=True)
class Greedy(_Text):
  """The likeliest token at every step.

  Attributes:
    steps: U, tokens to write at most, end mark included.
  """

  kind: ClassVar[str] = "greedy"
  loop: ClassVar[str] = "greedy"
  steps: int

  def __post_init__(self) -> None:
    _check(self, "steps", self.steps >= 1, "at least 1")


@dataclasses.dataclass(frozen=True)
class Sample(_Text):
  """A token drawn at every step. Each filter narrows what the one before it left.

  Attributes:
    steps: U, tokens to write at most, end mark included.
    temperature: divides the logits; below 1 sharpens.
    top_k: draw among the k likeliest tokens; 0 for all.
    top_p: draw among the fewest tokens whose probability reaches p; 1 for all.
      Holtzman et al., 2020, "The Curious Case of Neural Text Degeneration".
    seed: of the noise where `generate` is given no key.
  """

  kind: ClassVar[str] = "sample"
  loop: ClassVar[str] = "sample"
  steps: int
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  seed: int = 0

  def __post_init__(self) -> None:
    _check(self, "steps", self.steps >= 1, "at least 1")
    warm = 0 < self.temperature < float("inf")
    _check(self, "temperature", warm, "above 0 (bind `text.Greedy` for its limit at 0)")
    _check(self, "top_k", self.top_k >= 0, "at least 0, and 0 keeps every token")
    _check(self, "top_p", 0 < self.top_p <= 1, "in (0, 1], and 1 keeps every token")
    _check(self, "seed", self.seed >= 0, "at least 0")

  def _keys(self, numbers: Any) -> Any:
    if numbers is None or jax.dtypes.issubdtype(numbers.dtype, jax.dtypes.prng_key):
      return numbers
    seed = jax.random.key(self.seed)
    return jax.vmap(functools.partial(jax.random.fold_in, seed))(numbers)


@dataclasses.dataclass(frozen=True)
class Beam(_Text):
  """The best of several sequences grown side by side.

  Attributes:
    steps: U, tokens to write at most, end mark included.
    beams: K, sequences kept a row, and returned.
    alpha: strength of the length penalty; 0 ranks by plain log-probability.
    length_penalty: "brevity" searches as T5X does, "power" as Hugging Face does;
      `decoding.beam.beam_search` says where they differ.
  """

  kind: ClassVar[str] = "beam_search"
  loop: ClassVar[str] = "beam_search"
  steps: int
  beams: int = 4
  alpha: float = 0.6
  length_penalty: str = "brevity"

  def __post_init__(self) -> None:
    _check(self, "steps", self.steps >= 1, "at least 1")
    _check(self, "beams", self.beams >= 1, "at least 1")
    _check(self, "alpha", 0 <= self.alpha < float("inf"), "at least 0")
    known = self.length_penalty in LENGTH_PENALTIES
    _check(self, "length_penalty", known, f"one of {LENGTH_PENALTIES}")


def _check(settings: Any, name: str, fits: bool, allowed: str) -> None:
  if not fits:
    raise ValueError(
      f"`{type(settings).__name__}.{name}` must be {allowed}, got "
      f"{getattr(settings, name)!r}."
    )

"""What is served: by the caller's words, else by those of the prompt's card."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from prompt_tuning.engine.conventions import Conventions
from prompt_tuning.outputs.choice import Choice
from prompt_tuning.outputs.output import Output
from prompt_tuning.outputs.text import Beam, Greedy

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
DEFAULTS = {
  "steps": 32,
  "beams": 1,
  "alpha": 0.6,
  "length_penalty": "brevity",
  "normalize_by_length": False,
}
KINDS = {
  "steps": (int,),
  "beams": (int,),
  "alpha": (int, float),
  "normalize_by_length": (bool,),
}
WORDS = {
  "steps": "a whole number",
  "beams": "a whole number",
  "alpha": "a number",
  "normalize_by_length": "True or False",
}


@dataclasses.dataclass(frozen=True)
class Settings:
  """What the programs do. None is what the prompt's card says of its training, if it
  says it, and else the value in brackets.

  Attributes:
    platforms: some of `PLATFORMS`; each program is lowered for all of them.
    steps (32), beams (1), alpha (0.6), length_penalty ("brevity"): see
      `outputs.text.Beam`; one beam is greedy.
    labels: texts to choose among (none).
    normalize_by_length: see `outputs.choice.Choice` (False).
  """

  platforms: Sequence[str] = ("cpu", "cuda", "tpu")
  steps: int | None = None
  beams: int | None = None
  alpha: float | None = None
  length_penalty: str | None = None
  labels: Sequence[str] | None = None
  normalize_by_length: bool | None = None

  @property
  def outputs(self) -> tuple[Output, ...]:
    """What is exported: how text is written, and how labels are chosen, if any are."""
    if not self.labels:
      return (self.output,)
    return self.output, Choice(self.normalize_by_length)

  @property
  def output(self) -> Greedy | Beam:
    """How text is written."""
    names = "steps", "beams", "alpha", "length_penalty"
    own = {name: getattr(self, name) for name in names}
    beam = Beam(**{n: DEFAULTS[n] if x is None else x for n, x in own.items()})
    return beam if beam.beams > 1 else Greedy(beam.steps)

  def filled(self, known: Conventions) -> "Settings":
    """These settings, and what a prompt's training says where they say nothing."""
    labels = None if known.labels is None else list(known.labels)
    said = {**DEFAULTS, "labels": labels, **_trained(known.output)}
    mine = {name: getattr(self, name) for name in said}
    left = {name: said[name] for name, own in mine.items() if own is None}
    return dataclasses.replace(self, **left)

  def __post_init__(self) -> None:
    for name, kind in KINDS.items():
      value = getattr(self, name)
      # True is an int to Python.
      fits = type(value) in kind
      if value is not None and not fits:
        raise ValueError(f"`{name}` must be {WORDS[name]}, got {value!r}.")
    texts = () if self.labels is None else self.labels
    if isinstance(texts, str) or not all(isinstance(one, str) for one in texts):
      raise ValueError(f"`labels` must be a list of texts, got {texts!r}.")
    _ = self.output  # refuses what makes no sense
    platforms = [self.platforms] if isinstance(self.platforms, str) else self.platforms
    unknown = [name for name in platforms if name not in PLATFORMS]
    if unknown or not platforms or len(set(platforms)) < len(platforms):
      raise ValueError(
        f"`platforms` must be some of {PLATFORMS}, each once, got {list(platforms)}."
      )
    object.__setattr__(self, "platforms", tuple(platforms))


def _trained(output: Any) -> dict[str, Any]:
  """What an output of the training says of these settings."""
  return {name: getattr(output, name) for name in DEFAULTS if hasattr(output, name)}

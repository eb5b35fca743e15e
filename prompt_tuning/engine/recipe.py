"""What a run is told, as records that gin fills: the same for every verb that trains.

`train`, `tune` and `precompile` take these and nothing beside them, so that they run
the same step; what one of them cannot honour it refuses by name.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from prompt_tuning.core.randomness import streams
from prompt_tuning.data.features import Layout
from prompt_tuning.engine import loop
from prompt_tuning.engine.optimizer import Optimizer
from prompt_tuning.engine.sharding import DEFAULT, Sharding


@dataclasses.dataclass(frozen=True)
class Recipe:
  """The numbers and choices of a run.

  Attributes:
    trainable: branches that train, such as ("prompt",).
    objective: what is lowered. optimizer: how.
    plan: how long, and what when.
    batch_size: B. eval_batch_size: rows of an evaluation batch.
    eval_examples: validation examples used during training, drawn at random but the
      same in every run; None for all.
    microbatches: parts a batch is divided into. pack_segments: S; 1 pads.
    buckets: lengths of batches, chosen by the data's lengths; not with packed rows.
    seed: of the prompt, the order and the dropout.
    dropout_rate: of the backbone's layers while training.
    sharding: the mesh and what is divided over it.
    cache_codes: make the frozen encoder's codes once, see `engine.codes`.
  """

  trainable: Sequence[str]
  objective: Any
  optimizer: Optimizer
  plan: loop.Plan
  batch_size: int = 32
  eval_batch_size: int = 64
  eval_examples: int | None = None
  microbatches: int = 1
  pack_segments: int = 1
  buckets: int = 1
  seed: int = 0
  dropout_rate: float = 0.0
  sharding: Sharding = DEFAULT
  cache_codes: bool = False

  def __post_init__(self) -> None:
    object.__setattr__(self, "trainable", tuple(self.trainable))

  def drops(self, *parts: Any) -> bool:
    """Whether anything is dropped while a prompt and a head (or None) train."""
    return self.dropout_rate > 0 or drops(*parts)


@dataclasses.dataclass(frozen=True)
class Origin:
  """Where the frozen weights come from.

  Attributes:
    backbone: architecture; may be None where a checkpoint states it.
    checkpoint: weights ("mini", or a folder); None draws them at random.
    vocabulary: see `interop.vocabulary.located`; None takes the one beside the
      checkpoint.
  """

  backbone: Any = None
  checkpoint: str | None = None
  vocabulary: Any = None


@dataclasses.dataclass(frozen=True)
class Reading:
  """How examples become rows.

  Attributes:
    lengths: {"inputs": T, "targets": U}.
    place: where the prompt stands, see `data.features`; None for where the backbone
      has it.
    truncate: cut examples that are too long instead of refusing them.

  Raises:
    ValueError: unless there is one whole number for each side.
  """

  lengths: Mapping[str, int]
  place: str | None = None
  truncate: bool = False

  def __post_init__(self) -> None:
    wrong = set(self.lengths) != {"inputs", "targets"}
    if wrong or not all(isinstance(value, int) for value in self.lengths.values()):
      raise ValueError(
        f"`TASK_FEATURE_LENGTHS` is {dict(self.lengths)}; it must name two whole "
        'numbers, such as {"inputs": 128, "targets": 8}.'
      )

  def layout(self, model: Any) -> Layout:
    """Of the examples of a model, which says how many positions it reserves."""
    sizes = self.lengths["inputs"], self.lengths["targets"]
    return Layout.of(model, *sizes, self.place, self.truncate)


def drops(*parts: Any) -> bool:
  """Whether some word of a prompt or head draws noise while training, as dropout is."""
  return any(map(streams, parts))

"""Optimisers, schedules and rates, over optax."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from prompt_tuning.engine.groups import (
  Group,
  Schedule,
  check,
  check_branches,
  label_leaves,
)
from prompt_tuning.engine.kinds import number, optional

_FROM_0, _ABOVE_0 = number(low=0), number(above=0)
_SHARE = number(low=0, below=1)


def constant(learning_rate: float) -> Schedule:
  """The same rate at every step."""
  check("optimizer.constant", _FROM_0, learning_rate=learning_rate)
  return optax.constant_schedule(learning_rate)


def warmup_linear(learning_rate: float, warmup_steps: int, steps: int) -> Schedule:
  """Linear rise to the rate, then linear fall to 0 at `steps`."""
  own = {"learning_rate": learning_rate, "warmup_steps": warmup_steps, "steps": steps}
  check("optimizer.warmup_linear", _FROM_0, **own)
  return optax.join_schedules(
    [
      optax.linear_schedule(0.0, learning_rate, max(warmup_steps, 1)),
      optax.linear_schedule(learning_rate, 0.0, max(steps - warmup_steps, 1)),
    ],
    [warmup_steps],
  )


def warmup_cosine(learning_rate: float, warmup_steps: int, steps: int) -> Schedule:
  """Linear rise to the rate, then half a cosine down to 0 at `steps`."""
  own = {"learning_rate": learning_rate, "warmup_steps": warmup_steps, "steps": steps}
  check("optimizer.warmup_cosine", _FROM_0, **own)
  return optax.warmup_cosine_decay_schedule(
    0.0, learning_rate, max(warmup_steps, 1), max(steps, warmup_steps + 1)
  )


def exponential(learning_rate: float, decay: float, steps: int) -> Schedule:
  """rate * decay^(step / steps): the same factor at every step, `decay` over all."""
  own = {"learning_rate": learning_rate, "steps": steps}
  check("optimizer.exponential", _FROM_0, **own)
  check("optimizer.exponential", _ABOVE_0, decay=decay)
  return optax.exponential_decay(learning_rate, max(steps, 1), decay)


def inverse_square_root(learning_rate: float, warmup_steps: int) -> Schedule:
  """rate / sqrt(max(step, warm-up) / warm-up): T5's pre-training schedule."""
  owner = "optimizer.inverse_square_root"
  check(owner, _FROM_0, learning_rate=learning_rate)
  check(owner, _ABOVE_0, warmup_steps=warmup_steps)

  def schedule(step):
    return learning_rate * jax.numpy.sqrt(
      warmup_steps / jax.numpy.maximum(step, warmup_steps)
    )

  return schedule


@dataclasses.dataclass(frozen=True)
class Adafactor:
  """Adafactor as prompt tuning uses it: no factoring, no scaling by the parameter.

  The weight decay is not multiplied by the rate: each step keeps (1 - decay) of a
  parameter. The update's RMS is at most `clipping`, so that a rate of 0.3 moves a
  prompt by 0.3 a step whatever the gradient's scale.

  Attributes:
    decay_rate: exponent of the second moment's decay. weight_decay: see above.
    parameter_scale: multiply the rate by the parameter's RMS (for pre-training).
    factored: keep the second moment of large matrices as a row and a column.
    clipping: threshold of the update's RMS; None for none.
  """

  decay_rate: float = 0.8
  weight_decay: float | None = None
  parameter_scale: bool = False
  factored: bool = False
  clipping: float | None = 1.0

  def __post_init__(self) -> None:
    check("Adafactor", number(above=0, high=1), decay_rate=self.decay_rate)
    check("Adafactor", optional(_SHARE), weight_decay=self.weight_decay)
    check("Adafactor", optional(_ABOVE_0), clipping=self.clipping)

  def __call__(self, learning_rate: Schedule) -> optax.GradientTransformation:
    return optax.adafactor(
      learning_rate,
      decay_rate=self.decay_rate,
      multiply_by_parameter_scale=self.parameter_scale,
      clipping_threshold=self.clipping,
      weight_decay_rate=self.weight_decay,
      factored=self.factored,
    )


@dataclasses.dataclass(frozen=True)
class AdamW:
  """AdamW; the weight decay is multiplied by the rate."""

  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  weight_decay: float = 0.0

  def __post_init__(self) -> None:
    check("AdamW", _SHARE, b1=self.b1, b2=self.b2)
    check("AdamW", _ABOVE_0, eps=self.eps)
    check("AdamW", _FROM_0, weight_decay=self.weight_decay)

  def __call__(self, learning_rate: Schedule) -> optax.GradientTransformation:
    return optax.adamw(
      learning_rate, self.b1, self.b2, self.eps, weight_decay=self.weight_decay
    )


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """A rule, its schedule, clipping, and what single branches have of their own.

  Attributes:
    rule: makes a transformation of a schedule, such as `Adafactor()`.
    schedule: learning rate by step.
    clip_norm: largest norm of the whole gradient, or None. (Of no use in front of
      Adafactor, whose update does not depend on the gradient's scale.)
    branch_schedules: branch -> its own schedule: short for `Group(schedule=...)`.
    groups: branch -> `Group`. The longest matching path decides; the rest of what
      trains goes by the optimiser's own rule and schedule.
  """

  rule: Callable[[Schedule], optax.GradientTransformation]
  schedule: Schedule
  clip_norm: float | None = None
  branch_schedules: Mapping[str, Schedule] = dataclasses.field(default_factory=dict)
  groups: Mapping[str, Group] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    check("Optimizer", optional(_ABOVE_0), clip_norm=self.clip_norm)
    for name, group in self.groups.items():
      if not isinstance(group, Group):
        raise ValueError(
          f"`Optimizer.groups` (GROUPS) gives {name!r} {group!r}; give a "
          "`groups.Group`, such as Group(schedule=constant(0.1))."
        )
    both = sorted(set(self.groups) & set(self.branch_schedules))
    if both:
      raise ValueError(
        f"`Optimizer.groups` (GROUPS) and `branch_schedules` (BRANCH_SCHEDULES) both "
        f"name {both}. State the schedule in the group: Group(schedule=...)."
      )

  def stretched(self, share: float) -> "Optimizer":
    """The same with schedules that take 1 / `share` times as many steps."""

    def longer(schedule: Schedule | None) -> Schedule | None:
      if schedule is None:
        return None
      return lambda step: schedule(step * share)

    own = {name: longer(one) for name, one in self.branch_schedules.items()}
    groups = {
      name: dataclasses.replace(group, schedule=longer(group.schedule))
      for name, group in self.groups.items()
    }
    return dataclasses.replace(
      self, schedule=longer(self.schedule), branch_schedules=own, groups=groups
    )

  def build(self, trainable: Any) -> optax.GradientTransformation:
    """The transformation for a trainable tree.

    Raises:
      ValueError: if a branch with something of its own holds nothing that trains.
    """
    groups = {name: Group(schedule=own) for name, own in self.branch_schedules.items()}
    check_branches("BRANCH_SCHEDULES", groups, trainable)
    check_branches("GROUPS", self.groups, trainable)
    groups |= self.groups
    transform = self.rule(self.schedule)
    if groups:
      own = {name: g.build(self.rule, self.schedule) for name, g in groups.items()}
      labels = functools.partial(label_leaves, tuple(groups))
      transform = optax.multi_transform({"": transform, **own}, labels)
    if self.clip_norm is not None:
      transform = optax.chain(optax.clip_by_global_norm(self.clip_norm), transform)
    return transform


@dataclasses.dataclass(frozen=True)
class AsIs:
  """A transformation of optax in place of an `Optimizer`; its rate is its own.

  Attributes:
    transform: applied to the gradient as it is.
  """

  transform: optax.GradientTransformation

  schedule = None

  def stretched(self, share: float) -> "AsIs":
    """Itself: what its rate is, it alone knows."""
    return self

  def build(self, trainable: Any) -> optax.GradientTransformation:
    """The transformation, whatever trains."""
    return self.transform


# Rules by the names that `tune` takes.
RULES = {"adafactor": Adafactor, "adamw": AdamW}


def named(name: str) -> str:
  """The class of a rule by its name.

  Raises:
    ValueError: for a name that there is not.
  """
  if name not in RULES:
    raise ValueError(
      f"`optimizer` is {name!r}; the names are {list(RULES)}. Any other is given as a "
      "transformation of optax, such as optax.sgd(0.1)."
    )
  return RULES[name].__name__


def as_is(value: Any) -> Any:
  """What stands in place of an `Optimizer`; None for a name, a rule or None.

  Raises:
    ValueError: if it is no optimiser at all.
  """
  if isinstance(value, Optimizer):
    return value
  if isinstance(value, optax.GradientTransformation):
    return AsIs(value)
  if value is None or isinstance(value, (str, Adafactor, AdamW)):
    return None
  raise ValueError(
    f"`optimizer` is {value!r}; give one of the names {list(RULES)}, a transformation "
    "of optax such as optax.sgd(0.1), or a class of `prompt_tuning.engine.optimizer`, "
    "built."
  )

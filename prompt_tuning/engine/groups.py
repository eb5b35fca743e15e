"""Groups: what single branches of the trained parameters have of their own."""

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import optax

from prompt_tuning.core import trainable as branches
from prompt_tuning.engine.kinds import Kind, number, optional

Schedule = Callable[[Any], Any]


def check(owner: str, kind: Kind, **values: Any) -> None:
  """Raises ValueError for an argument, by name, that does not fit."""
  for argument, value in values.items():
    value = value.item() if hasattr(value, "item") else value
    if not kind.accepts(value):
      raise ValueError(f"`{owner}.{argument}` must be {kind.words}, got {value!r}.")


@dataclasses.dataclass(frozen=True)
class Group:
  """How one branch of what trains is updated.

  The gradient passes `before`, is clipped, passes the rule, and its update `after`.

  Attributes:
    rule, schedule: its own; None for the optimiser's.
    weight_decay: in place of the rule's, which says what it is multiplied by; None
      leaves it.
    clip_norm: largest norm of the gradient of this group alone, or None.
    before, after: transformations of optax, in order.
  """

  rule: Callable[[Schedule], optax.GradientTransformation] | None = None
  schedule: Schedule | None = None
  weight_decay: float | None = None
  clip_norm: float | None = None
  before: Sequence[optax.GradientTransformation] = ()
  after: Sequence[optax.GradientTransformation] = ()

  def __post_init__(self) -> None:
    check("Group", optional(number(low=0)), weight_decay=self.weight_decay)
    check("Group", optional(number(above=0)), clip_norm=self.clip_norm)

  def build(
    self, rule: Callable[[Schedule], optax.GradientTransformation], schedule: Schedule
  ) -> optax.GradientTransformation:
    """The transformation of the group, given what stands where it has nothing.

    Raises:
      ValueError: if `weight_decay` is set and the rule takes none.
    """
    rule = rule if self.rule is None else self.rule
    if self.weight_decay is not None:
      fields = dataclasses.fields(rule) if dataclasses.is_dataclass(rule) else ()
      if "weight_decay" not in {field.name for field in fields}:
        raise ValueError(
          f"`Group.weight_decay` is {self.weight_decay}, and its rule {rule!r} takes "
          "none. Bind `optimizer.AdamW()` or `optimizer.Adafactor()` as the "
          "rule, or leave `weight_decay` out."
        )
      rule = dataclasses.replace(rule, weight_decay=self.weight_decay)
    own = rule(self.schedule if self.schedule is not None else schedule)
    parts = [*self.before, own, *self.after]
    if self.clip_norm is not None:
      parts.insert(len(self.before), optax.clip_by_global_norm(self.clip_norm))
    return own if len(parts) == 1 else optax.chain(*parts)


def label_leaves(groups: Sequence[str], tree: Any) -> Any:
  """The group of each leaf: the longest path that it lies in, "" for none."""

  def label(path: str) -> str:
    names = [name for name in groups if branches.within(path, name)]
    return max(names, key=len, default="")

  return branches.unflatten({path: label(path) for path in branches.flatten(tree)})


def check_branches(owner: str, names: Iterable[str], trainable: Any) -> None:
  """Raises ValueError for a branch in which nothing trains."""
  paths = list(branches.flatten(trainable))
  # Every branch that there is: the path of each leaf and all above it.
  names_of = [path.split("/") for path in paths]
  there = sorted({"/".join(n[:i]) for n in names_of for i in range(1, len(n) + 1)})
  for name in names:
    if name not in there:
      near = difflib.get_close_matches(str(name), there, 1, 0.0)
      raise ValueError(
        f"`{owner}` names the branch {name!r}, which holds no parameter that trains. "
        + (f"The nearest that does is {near[0]!r}." if near else "Nothing trains.")
      )

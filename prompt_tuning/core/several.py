"""What prompts that hold prompts share: names of their branches, and facts."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn


class Several(nn.Module):
  """Prompts by names, which are those of their branches.

  Attributes:
    prompts: at least one Prompt: a mapping name -> Prompt, so that the branch of each
      is `prompt/NAME`, or a sequence, whose branches are `prompt/prompts_0` and so on.
    names: those of a sequence; None for a mapping, which brings its own.
  """

  # The names below are those of the branches.
  preserve_adopted_names: ClassVar[bool] = True
  reads_code: ClassVar[bool] = False
  prompts: Sequence[nn.Module] | Mapping[str, nn.Module]
  names: Sequence[str] | None = None

  def __post_init__(self) -> None:
    kind = type(self).__name__
    if isinstance(self.prompts, Mapping):
      if self.names is not None:
        raise ValueError(
          f"`{kind}.names` is {self.names!r} and `{kind}.prompts` a mapping, which "
          "names its own. Leave `names` out."
        )
      # A sequence keeps its order wherever Flax maps over it, a mapping does not.
      self.names = tuple(self.prompts)
      self.prompts = tuple(self.prompts.values())
    names = (None,) * len(self.prompts) if self.names is None else tuple(self.names)
    if not names or len(names) != len(self.prompts):
      raise ValueError(
        f"`{kind}.prompts` holds {len(self.prompts)} prompts and `{kind}.names` "
        f"{len(names)} names. Give one name for each of at least one prompt."
      )
    for name in names if self.names is not None else ():
      self._check_name(name, names)
    self.prompts = tuple(map(_named, self.prompts, names))
    super().__post_init__()

  def _check_name(self, name: Any, names: Sequence[Any]) -> None:
    fits = isinstance(name, str) and re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name)
    # What the class has already, Flax gives to no branch.
    own = {field.name for field in dataclasses.fields(self)} | {"scope"}
    taken = fits and (hasattr(type(self), name) or name in own)
    if not fits or taken or names.count(name) > 1:
      kind = type(self).__name__
      raise ValueError(
        f"`{kind}.prompts` gives a prompt the name {name!r}. A name is a word of "
        "letters, digits and underscores that no other prompt has, such as 'task', "
        f"and none of {', '.join(sorted(own))} or another attribute of {kind}."
      )

  @property
  def needs(self) -> frozenset[str]:
    return frozenset().union(*(prompt.needs for prompt in self.prompts))

  @property
  def encoded(self) -> tuple[nn.Module, ...]:
    return tuple(one for prompt in self.prompts for one in prompt.encoded)

  @property
  def reads_states(self) -> bool:
    return any(prompt.reads_states for prompt in self.prompts)

  @property
  def reads_text(self) -> bool:
    return any(prompt.reads_text for prompt in self.prompts)

  @property
  def external_width(self) -> int:
    return max(prompt.external_width for prompt in self.prompts)


def _named(prompt: nn.Module, name: str | None) -> nn.Module:
  """The prompt under a name; its words stay the objects they are."""
  given = getattr(prompt, "name", None)
  bound = getattr(prompt, "parent", None) is not None
  return prompt if given == name or bound else prompt.clone(name=name)

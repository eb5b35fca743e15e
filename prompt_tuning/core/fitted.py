"""A sentence about two stacks, said to a backbone that has one.

A causal stack reads and writes: what acts on the encoder of an encoder-decoder acts on
the one stack there. So of a prompt's parts

  encoder.X   stands at decoder.X; where another part stands there already, which does
              the same to the other stack, it is left out
  cross.X     decoder.cross.X   are left out: nothing crosses

and parts keep their names, which are those of their branches. On an encoder alone, the
parts that act on a decoder are left out.
"""

import dataclasses
from typing import Any

from prompt_tuning.core.context import Spec
from prompt_tuning.core.prompt import Prompt, Together


def fitted(prompt: Any, spec: Spec) -> Any:
  """The prompt at places of the backbone; itself where it has two stacks.

  Args:
    prompt: `Prompt`, `Together`, or None. spec: of the backbone.

  Raises:
    ValueError: if no part is left.
  """
  if not isinstance(prompt, (Prompt, Together)):
    return prompt
  if len({place.partition(".")[0] for place in spec.places}) != 1:
    return prompt
  if isinstance(prompt, Prompt):
    place = _moved(prompt.at.place, spec)
    # What crosses is refused where it is asked what it needs.
    return prompt if place in (None, prompt.at.place) else _at(prompt, place)
  places = [part.at.place for part in prompt.prompts if isinstance(part, Prompt)]
  names = prompt.names or [f"prompts_{i}" for i in range(len(prompt.prompts))]
  kept: dict[str, Any] = {}
  for name, part in zip(names, prompt.prompts, strict=True):
    if not isinstance(part, Prompt):
      kept[name] = part
      continue
    place = _moved(part.at.place, spec)
    if place is None or (place != part.at.place and place in places):
      continue
    kept[name] = part if place == part.at.place else _at(part, place)
  if not kept:
    raise ValueError(
      f"`PROMPT` acts at {sorted(places)} alone, on a stack that this backbone lacks. "
      f"It has {', '.join(sorted(spec.places))}."
    )
  parts = tuple(kept.values())
  # Modules are compared as the objects they are.
  same = list(map(id, parts)) == list(map(id, prompt.prompts))
  return prompt if same else Together(kept)


def _moved(place: str, spec: Spec) -> str | None:
  """The place of the only stack; None for what it has not; unknown ones stay."""
  if place in spec.places:
    return place
  stack, _, rest = place.partition(".")
  if stack == "cross" or rest.startswith("cross."):
    return None
  if spec.reader == "encoder" and stack == "decoder":
    return None
  return f"{spec.reader}.{rest}"


def _at(prompt: Prompt, place: str) -> Prompt:
  return prompt.clone(site=dataclasses.replace(prompt.at, place=place))

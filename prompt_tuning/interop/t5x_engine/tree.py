"""Our parameters as T5X's tree: the backbone at its root, the prompt as a branch.

A plain table in front of the encoder's input stands where google-research's
prompt-tuning keeps its prompt, at `encoder/prompt/prompt/prompt` [P H]; the parameters
of every other method stand below `prompt/`.
"""

from collections.abc import Callable
from typing import Any

from flax.core import FrozenDict, freeze, unfreeze
from flax.linen import partitioning

from prompt_tuning.core.places import At
from prompt_tuning.core.prompt import Prompt
from prompt_tuning.core.trainable import flatten, unflatten
from prompt_tuning.parameterisers.dense import Dense

# Ours is [1 P H]: one table.
OURS, TABLE = "prompt/parameterise/prompt", "encoder/prompt/prompt/prompt"
BRANCH, BACKBONE = "prompt/", "backbone/"


def is_table(prompt: Any) -> bool:
  """Whether a prompt is one free table in front of the encoder's input."""
  return (
    type(prompt) is Prompt
    and type(prompt.parameterise) is Dense
    and prompt.at == At("encoder.input")
    and not prompt.transforms
  )


def to_t5x(
  params: Any, prompt: Any, unwrap: Callable[[Any], Any] = lambda x: x[0]
) -> dict[str, Any]:
  """{"backbone": ..., "prompt": ...} as T5X's tree.

  Args:
    params: arrays, or something else that stands for each of them.
    prompt: whose parameters they are; None where there are none.
    unwrap: takes the axis of length 1 from a table's entry.
  """
  table = is_table(prompt)
  flat = {}
  for path, leaf in flatten(unfreeze(params)).items():
    if table and path == OURS:
      flat[TABLE] = unwrap(leaf)
    else:
      flat[path.removeprefix(BACKBONE)] = leaf
  return unflatten(flat)


def from_t5x(
  tree: Any, prompt: Any, wrap: Callable[[Any], Any] = lambda x: x[None]
) -> dict[str, Any]:
  """The inverse of `to_t5x`; `wrap` gives a table's entry its axis of length 1."""
  table = is_table(prompt)
  flat = {}
  for path, leaf in flatten(unfreeze(tree)).items():
    if table and path == TABLE:
      flat[OURS] = wrap(leaf)
    elif path.startswith(BRANCH):
      flat[path] = leaf
    else:
      flat[BACKBONE + path] = leaf
  return unflatten(flat)


def axes(backbone_axes: Any, prompt_shapes: Any, prompt: Any) -> dict[str, Any]:
  """`params_axes` of T5X: the logical axis names of every parameter of the tree.

  Args:
    backbone_axes: tuples of names, of `T5.logical_axes`.
    prompt_shapes: of `PromptedModel.prompt_shapes`.
    prompt: whose shapes these are.

  A table's axes are "prompt" and "prompt_embed"; the axes of another prompt's arrays
  are "prompt_0", "prompt_1" and so on. `RULES` replicates them all.
  """
  names = {"backbone": backbone_axes}
  if prompt_shapes:
    names["prompt"] = unflatten(
      {path: _numbered(leaf) for path, leaf in flatten(prompt_shapes).items()}
    )
  tree = to_t5x(names, prompt, lambda _: ("prompt", "prompt_embed"))
  marked = {
    f"{path}_axes": partitioning.AxisMetadata(leaf)
    for path, leaf in flatten(tree).items()
  }
  return unflatten(marked)


# The deepest array of any word has this many axes at the most.
_RANK = 8
RULES = [
  (name, None)
  for name in ("prompt", "prompt_embed", *(f"prompt_{i}" for i in range(_RANK)))
]


def rules() -> list[tuple[str, None]]:
  """Rules of T5X for the axes of prompts: every device holds all of them."""
  return list(RULES)


def _numbered(leaf: Any) -> tuple[str, ...]:
  return tuple(f"prompt_{i}" for i in range(len(leaf.shape)))


def alike(tree: Any, before: Any) -> Any:
  """A tree in the kind of dictionary that another is in."""
  return freeze(tree) if isinstance(before, FrozenDict) else tree

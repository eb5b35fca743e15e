"""Named branches of the parameter tree: what is named trains, the rest is frozen.

A name is a path from the root, such as "prompt", "backbone" or
"prompt/parameterise"; it stands for everything below it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax

Tree = Mapping[str, Any]


def flatten(tree: Tree) -> dict[str, Any]:
  """{"a/b/c": leaf} in a fixed order."""
  flat = flax.traverse_util.flatten_dict(dict(tree), sep="/")
  return dict(sorted(flat.items()))


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  return flax.traverse_util.unflatten_dict(dict(flat), sep="/")


def within(path: str, branch: str) -> bool:
  """Whether a leaf's path lies in a branch."""
  return path == branch or path.startswith(branch + "/")


def check(tree: Tree, branches: Sequence[str]) -> None:
  """Raises ValueError for a branch that names nothing, or numbers that cannot train."""
  paths = list(flatten(tree))
  for branch in branches:
    if not any(within(path, branch) for path in paths):
      tops = sorted({"/".join(path.split("/")[:2]) for path in paths})
      raise ValueError(
        f"`TRAINABLE` names the branch {branch!r}, which holds no parameter. "
        f"There are {tops[:12]}."
      )

  for path, value in flatten(split(tree, branches)[0]).items():
    for leaf in jax.tree.leaves(value):
      if not jax.numpy.issubdtype(leaf.dtype, jax.numpy.inexact):
        raise ValueError(
          f"`TRAINABLE` names {path!r}, which is held as {leaf.dtype} and cannot "
          "train. Set WEIGHTS_DTYPE = None, or leave that branch frozen."
        )


def split(tree: Tree, branches: Sequence[str]) -> tuple[dict, dict]:
  """(trainable, frozen), two trees that `merge` puts together again."""
  flat = flatten(tree)
  trains = {p: v for p, v in flat.items() if any(within(p, b) for b in branches)}
  rest = {p: v for p, v in flat.items() if p not in trains}
  return unflatten(trains), unflatten(rest)


def merge(trainable: Tree, frozen: Tree) -> dict[str, Any]:
  """The whole tree; no leaf may be in both."""
  left, right = flatten(trainable), flatten(frozen)
  both = sorted(set(left) & set(right))
  if both:
    raise ValueError(f"Leaves are both trainable and frozen: {both[:5]}.")
  return unflatten({**left, **right})


def count(tree: Tree) -> int:
  """How many numbers a tree holds."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))

"""Marks on arrays: what their axes are called, for who knows where arrays live.

A model says "these axes are batch, length and embed"; the engine, which owns the
devices, says what that means while it compiles. Without an engine a mark does nothing.
The names are T5X's: batch, length, embed, heads, kv, joined_kv, mlp, vocab, layers,
relpos_buckets, positions; and prompt for the positions of a prompt.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Names = Sequence[str | None]
# (array, names of its axes, whether it is a weight about to be used) -> the array.
Constrain = Callable[[Any, Names, bool], Any]

_constrain: contextvars.ContextVar[Constrain | None] = contextvars.ContextVar(
  "constrain", default=None
)


@contextlib.contextmanager
def using(constrain: Constrain) -> Iterator[None]:
  """What marks mean inside of the block, which traces a program."""
  token = _constrain.set(constrain)
  try:
    yield
  finally:
    _constrain.reset(token)


def placed(x: Any, *names: str | None) -> Any:
  """The same array, divided over the devices as the names of its axes say."""
  constrain = _constrain.get()
  return x if constrain is None else constrain(x, names, False)


def gathered(weight: Any, *names: str | None) -> Any:
  """The same weight, whole along the devices that divide the batch.

  Marked where a layer uses its weight, so that a weight which is stored in slices is
  collected for that layer alone, inside of a scan over layers.
  """
  constrain = _constrain.get()
  return weight if constrain is None else constrain(weight, names, True)

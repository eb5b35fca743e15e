"""Compiled programs that are kept for the next question."""

import collections
import json
import threading
from collections.abc import Callable, Hashable
from typing import Any

from prompt_tuning.core import describe


class Programs:
  """Programs by the prompt's module and what is asked of it; the newest stay.

  A program takes the weights as arguments, so that prompts of one method share it, and
  is compiled once for each shape that it meets.

  Attributes:
    most: how many are kept.
  """

  def __init__(self, most: int = 16) -> None:
    self.most = most
    self._kept: collections.OrderedDict[Hashable, Any] = collections.OrderedDict()
    self._lock = threading.Lock()

  def __reduce__(self) -> tuple[Any, ...]:
    # A copy compiles its own: programs and locks belong to one process.
    return Programs, (self.most,)

  def __len__(self) -> int:
    return len(self._kept)

  def get(self, module: Any, asked: Hashable, make: Callable[[], Any]) -> Any:
    """The program that `make` gave for the same module and question before.

    Args:
      module: the prompt's, or None. asked: what else the program depends on.
      make: builds it.
    """
    key = (_words(module), asked)
    with self._lock:
      if key not in self._kept:
        # The module too: where its identity is the key, no other may take it over.
        self._kept[key] = module, make()
      self._kept.move_to_end(key)
      while len(self._kept) > self.most:
        self._kept.popitem(last=False)
      return self._kept[key][1]


def _words(module: Any) -> Hashable:
  try:
    return json.dumps(describe.describe(module), sort_keys=True)
  except (TypeError, ValueError):
    # A word that holds what no card can say.
    return id(module)

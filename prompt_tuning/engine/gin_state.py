"""gin's state, which is the process's, lent to one configuration at a time.

Only this file and `engine/config.py` import gin.
"""

import contextlib
import threading
from collections.abc import Collection, Iterator
from typing import Any

import gin
from gin import config as gin_config

# One configuration is parsed and read at a time.
_LOCK = threading.RLock()

_TABLES = (
  "_CONFIG",
  "_SINGLETONS",
  "_OPERATIVE_CONFIG",
  "_INVERSE_REGISTRY",
  "_RENAMED_SELECTORS",
)
_SELECTORS = ("_REGISTRY", "_CONSTANTS")
_FLAGS = ("_CONFIG_IS_LOCKED", "_INTERACTIVE_MODE")


@contextlib.contextmanager
def isolated() -> Iterator[None]:
  """gin as after its import within; the caller's own as it was after it.

  Other threads wait at the entrance, so do not train inside: what macros are made of
  depends on gin no longer once it is made.
  """
  with _LOCK:
    before = _taken()
    try:
      _fresh()
      with gin.config_scope(None):
        yield
    finally:
      _put_back(before)


def _taken() -> dict[str, Any]:
  state: dict[str, Any] = {name: dict(getattr(gin_config, name)) for name in _TABLES}
  for name in ("_CONFIG", "_OPERATIVE_CONFIG"):
    state[name] = {key: dict(values) for key, values in state[name].items()}
  state |= {name: dict(getattr(gin_config, name).items()) for name in _SELECTORS}
  state |= {name: getattr(gin_config, name) for name in _FLAGS}
  state["_IMPORTS"] = set(gin_config._IMPORTS)
  state["_LOCATION_PREFIXES"] = list(gin_config._LOCATION_PREFIXES)
  return state


def _put_back(state: dict[str, Any]) -> None:
  for name in (*_TABLES, "_IMPORTS"):
    table = getattr(gin_config, name)
    table.clear()
    table.update(state[name])
  for name in _SELECTORS:
    selectors = getattr(gin_config, name)
    selectors.clear()
    for key, value in state[name].items():
      selectors[key] = value
  for name in _FLAGS:
    setattr(gin_config, name, state[name])
  gin_config._LOCATION_PREFIXES[:] = state["_LOCATION_PREFIXES"]


def _fresh() -> None:
  """Keeps what gin itself registers, and nothing else."""
  own = {
    selector: entry
    for selector, entry in gin_config._REGISTRY.items()
    if selector.startswith("gin.")
  }
  empty: dict[str, Any] = {name: {} for name in _TABLES}
  _put_back(
    {
      **empty,
      "_REGISTRY": own,
      "_INVERSE_REGISTRY": {entry.wrapped: entry for entry in own.values()},
      "_CONSTANTS": {"gin.REQUIRED": gin.REQUIRED},
      "_CONFIG_IS_LOCKED": False,
      "_INTERACTIVE_MODE": False,
      "_IMPORTS": set(),
      "_LOCATION_PREFIXES": [""],
    }
  )


def reached(wanted: set[str], without: Collection[str] = ()) -> set[str]:
  """Macros that these macros are made of, themselves included.

  Args:
    wanted: where to begin. without: macros that are left out, with what they alone are
      made of.
  """
  config = gin_config._CONFIG
  left_out = {(name, "gin.macro") for name in without}
  found = set(left_out)
  open_ = [(name, "gin.macro") for name in wanted]
  while open_:
    key = open_.pop()
    if key in found:
      continue
    found.add(key)
    scope, selector = key
    for (at, other), parameters in config.items():
      # A binding without a scope holds in every scope.
      if other == selector and (at == scope or not at):
        for reference in gin_config.iterate_references(parameters):
          open_.append(reference.config_key)
  return {scope for scope, selector in found - left_out if selector == "gin.macro"}

"""What gin has parsed: macros, who reads them, and their values."""

from collections.abc import Callable
from typing import Any

import gin
from gin import config as gin_config

from prompt_tuning.engine.explain import ConfigError
from prompt_tuning.engine.kinds import Made

# Arguments of a run's records that bear another name than their macros.
ARGUMENTS = {
  "steps": "TRAIN_STEPS",
  "metric": "BEST_METRIC",
  "lengths": "TASK_FEATURE_LENGTHS",
  "place": "PROMPT_PLACE",
  "checkpoint": "INITIAL_CHECKPOINT_PATH",
}
# Where such records are defined.
RECORDS = ("prompt_tuning.engine.recipe", "prompt_tuning.engine.loop")


class _UnsetError(Exception):
  """A value hangs on a macro that is not set."""


def bound() -> dict[str, Any]:
  """Macro name -> bound value, as gin holds it."""
  return {
    scope: parameters.get("value")
    for (scope, selector), parameters in gin_config._CONFIG.items()
    if selector == "gin.macro"
  }


def arguments(function: Callable[..., Any]) -> dict[str, Any]:
  """Argument -> bound value of a function, as gin holds it."""
  name = f"{function.__module__}.{function.__qualname__}"
  return {
    argument: value
    for (_, selector), parameters in gin_config._CONFIG.items()
    if selector == name
    for argument, value in parameters.items()
  }


def records(verb: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
  """Name, such as "recipe.Recipe" -> who takes arguments: a verb and its records."""
  found = {f"{verb.__module__.rsplit('.', 1)[-1]}.{verb.__qualname__}": verb}
  for (_, selector), _ in gin_config._CONFIG.items():
    module, _, name = selector.rpartition(".")
    if module in RECORDS:
      short = f"{module.rsplit('.', 1)[-1]}.{name}"
      found[short] = gin_config._REGISTRY[selector].wrapped
  return found


def read_macro(value: Any) -> str | None:
  """The macro that a value is, or None for another value."""
  if not isinstance(value, gin_config.ConfigurableReference):
    return None
  if value.selector != "gin.macro":
    return None
  return "/".join(value.scoped_selector.split("/")[:-1])


def references() -> set[str]:
  """Names of macros that some binding reads."""
  found: set[str] = set()

  def walk(value: Any) -> None:
    if (name := read_macro(value)) is not None:
      found.add(name)
    elif isinstance(value, dict):
      for item in [*value.keys(), *value.values()]:
        walk(item)
    elif isinstance(value, (list, tuple, set)):
      for item in value:
        walk(item)

  for parameters in gin_config._CONFIG.values():
    for value in parameters.values():
      walk(value)
  return found - {"gin.REQUIRED"}


def required(value: Any) -> bool:
  """Whether a value is `%gin.REQUIRED`."""
  if isinstance(value, gin_config.ConfigurableReference):
    return value.scoped_selector.startswith("gin.REQUIRED/")
  return value is gin.REQUIRED


def behind(argument: str) -> str | None:
  """The macro that already stands for an argument such as "train.train.seed"."""
  scope, _, rest = argument.rpartition("/")
  owner, _, name = rest.rpartition(".")
  for (own, selector), parameters in gin_config._CONFIG.items():
    same = selector == owner or selector.endswith(f".{owner}")
    if owner and own == scope and same and name in parameters:
      macro = read_macro(parameters[name])
      return None if required(parameters[name]) else macro
  return None


def plain() -> dict[str, Any]:
  """Macro -> value with references followed, without those that are not all set.

  Nothing is made: what gin would make is a `kinds.Made`.

  Raises:
    ConfigError: if macros read each other in a circle.
  """
  return _plain(bound())


def _plain(values: dict[str, Any]) -> dict[str, Any]:
  macros = bound()
  found = {}
  for name, value in values.items():
    try:
      found[name] = _followed(value, macros, (name,))
    except _UnsetError:
      continue
  return found


def plain_arguments(function: Callable[..., Any]) -> dict[str, Any]:
  """Argument -> value of those that are bound to something else than a macro."""
  own = arguments(function)
  return _plain({name: own[name] for name in own if read_macro(own[name]) is None})


def _followed(value: Any, macros: dict[str, Any], seen: tuple[str, ...]) -> Any:
  if required(value):
    raise _UnsetError
  if (name := read_macro(value)) is not None:
    if name not in macros:
      raise _UnsetError
    if name in seen:
      raise ConfigError(
        f"The macros {' -> '.join([*seen, name])} read each other. Give one a value."
      )
    return _followed(macros[name], macros, (*seen, name))
  if isinstance(value, gin_config.ConfigurableReference):
    return Made(value.scoped_selector, value.evaluate)
  if isinstance(value, (list, tuple)):
    return type(value)(_followed(item, macros, seen) for item in value)
  if isinstance(value, dict):
    return {
      _followed(key, macros, seen): _followed(item, macros, seen)
      for key, item in value.items()
    }
  return value


def macro(name: str) -> Any:
  """The value of a macro, its references called."""
  return _evaluated(bound()[name])


def _evaluated(value: Any) -> Any:
  if isinstance(value, gin_config.ConfigurableReference):
    return value.__deepcopy__({})
  if isinstance(value, (list, tuple)):
    return type(value)(_evaluated(item) for item in value)
  if isinstance(value, dict):
    return {key: _evaluated(item) for key, item in value.items()}
  return value

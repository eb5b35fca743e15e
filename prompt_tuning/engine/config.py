"""gin files and flags; beside `gin_state`, the only room that imports gin.

  python -m prompt_tuning.train --gin_file=RECIPE.gin --gin.NAME=value

Recipes name `gin/...` files relative to the project (or to the installed package) or
to the current directory; `--gin_search_paths=DIR,DIR` adds places.
"""

import contextlib
import difflib
import inspect
import logging
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gin
from gin import config as gin_config

from prompt_tuning.core.files import at, is_remote
from prompt_tuning.engine import compilation, distributed
from prompt_tuning.engine.explain import differing_lines as differing_lines
from prompt_tuning.engine.explain import missing_file, nearest, unparsed

# What gin's parser raises for what a user wrote.
_WRONG = (ValueError, AttributeError, ImportError, NameError, SyntaxError, TypeError)

# Flags that a value follows.
_VALUED = ("--gin_file", "--gin_search_paths", "--gin_bindings", *distributed.FLAGS)

PACKAGE = pathlib.Path(__file__).resolve().parent.parent


class ConfigError(ValueError):
  """A configuration that cannot run; the message says what to change."""


def search_paths() -> list[str]:
  """Where included files are looked for: here, then beside or in the package."""
  places = [pathlib.Path("."), PACKAGE.parent, PACKAGE / "assets"]
  return [
    str(place) for place in places if (place / "gin").is_dir() or place == places[0]
  ]


def gin_folder() -> pathlib.Path:
  """The folder `gin/` that comes with the library."""
  for place in (PACKAGE.parent, PACKAGE / "assets"):
    if (place / "gin" / "methods").is_dir():
      return place / "gin"
  raise ConfigError("The folder `gin/` of prompt_tuning is missing; reinstall it.")


def methods() -> list[str]:
  """Names of the methods that come with the library."""
  return sorted(path.stem for path in (gin_folder() / "methods").glob("*.gin"))


def inits() -> list[str]:
  """Names of the initialisations that come with the library."""
  return sorted(path.stem for path in (gin_folder() / "inits").glob("*.gin"))


def run_verb(verb: Callable[..., Any], argv: Sequence[str] | None = None) -> Any:
  """Parses flags, checks the configuration and calls the verb with what gin binds.

  A ValueError or OSError of the user's making ends as one line and exit status 2.
  """
  argv = sys.argv[1:] if argv is None else argv
  try:
    processes = parse_flags(argv, verb.__module__)
    _check_bound(verb)
    compilation.keep()
    distributed.start(processes)
    return call(verb)
  except (ValueError, OSError) as error:
    print(f"error: {_first_cause(error)}", file=sys.stderr)
    raise SystemExit(2) from error


def call(verb: Callable[..., Any]) -> Any:
  """Calls a function with what the parsed configuration binds to it."""
  return gin.get_configurable(verb)()


def _check_bound(verb: Callable[..., Any]) -> None:
  """Refuses files that leave an argument of the verb open."""
  bound: set[str] = set()
  for (_, selector), parameters in gin_config._CONFIG.items():
    if selector == f"{verb.__module__}.{verb.__qualname__}":
      bound |= set(parameters)
  needed = inspect.signature(verb).parameters.values()
  open_ = [p.name for p in needed if p.default is p.empty and p.name not in bound]
  if open_:
    name = verb.__module__.rsplit(".", 1)[-1]
    raise ConfigError(
      f"The configuration binds no {', '.join(open_)} of {name}.{verb.__qualname__}. "
      f'Add include "gin/{name}.gin" at the top of the gin file, or '
      f"--gin_file=gin/{name}.gin first."
    )


def _first_cause(error: BaseException) -> str:
  # gin appends where in the configuration a call stood; keep that to the last line.
  text = str(error).strip()
  return text.split("\n  In call to configurable")[0]


def parse_flags(
  argv: Sequence[str], verb: str, check: bool = True
) -> distributed.Cluster:
  """Reads --gin_file, --gin_search_paths, --gin_bindings and --gin.NAME=value.

  With `check=False`, macros may stay unset.

  Returns:
    What flags and the environment say of other processes.
  """
  files, bindings, paths = [], [], []
  processes, detect = {}, False
  arguments = list(argv)
  while arguments:
    flag = arguments.pop(0)
    if flag in ("-h", "--help"):
      print(f"python -m {verb} --gin_file=FILE [--gin.NAME=value ...]\n\n{__doc__}")
      raise SystemExit(0)
    name, equals, value = flag.partition("=")
    if name.startswith("--gin.") and equals:
      bindings.append(f"{name[len('--gin.') :]} = {value}")
      continue
    if name in ("--multiprocess", "--multiprocess_gpu") and not equals:
      detect = True
      continue
    if name not in _VALUED:
      raise ConfigError(_unknown_flag(flag))
    if not equals:
      if not arguments:
        raise ConfigError(f"`{name}` needs a value: {name}=VALUE.")
      value = arguments.pop(0)
    if name in distributed.FLAGS:
      processes[name] = value
    elif name == "--gin_file":
      files.append(value)
    elif name == "--gin_bindings":
      bindings.append(value)
    else:
      paths.extend(value.split(","))
  if not files:
    raise ConfigError(
      f"No configuration: python -m {verb} --gin_file=configs/... "
      "[--gin.MODEL_DIR=\"'runs/name'\"]."
    )
  found = distributed.cluster(processes, detect)
  parse(files, bindings, paths, check)
  return found


def _unknown_flag(flag: str) -> str:
  fix = "--gin.NAME=value" if flag.startswith("--gin") else "--gin_file=FILE"
  return (
    f"Unknown flag {flag!r}. Flags are --gin_file=FILE, --gin_search_paths=DIR,DIR, "
    f"--gin_bindings='NAME = value' and --gin.NAME=value, and for several processes "
    f"{', '.join(distributed.FLAGS)} or --multiprocess; did you mean {fix}?"
  )


def _is_remote_file(path: str) -> bool:
  return is_remote(path) and at(path).is_file()


gin_config.register_file_reader(lambda path: at(path).open(), _is_remote_file)


def parse(
  files: Sequence[str],
  bindings: Sequence[str] = (),
  paths: Sequence[str] = (),
  check: bool = True,
) -> None:
  """Replaces the configuration by files and bindings, and checks it whole.

  With `check=False`, macros may stay unset, so that `names` can be asked for them.

  Raises:
    ConfigError: for an unknown file or name (the nearest is suggested), or for macros
      that must be set and are not (all are listed).
  """
  gin.clear_config()
  gin_config._LOCATION_PREFIXES[:] = [""]
  places = [*paths, *search_paths()]
  for path in places:
    gin.add_config_file_search_path(path)
  for file in files:
    _parse_file(file, places)
  known = names()
  for binding in bindings:
    _parse_binding(binding, known)
  if check:
    _check_macros()
    _check_unread()


def _parse_file(file: str, places: Sequence[str]) -> None:
  try:
    with _quiet():
      gin.parse_config_file(file)
  except UnicodeDecodeError as error:
    raise ConfigError(f"{file}, or a file it includes, is not UTF-8.") from error
  except OSError as error:
    raise ConfigError(missing_file(error, places)) from error
  except _WRONG as error:
    raise ConfigError(_explain(error)) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """gin logs each place where it does not find a file; the error says it once."""
  before = logging.root.manager.disable
  logging.disable(logging.ERROR)
  try:
    yield
  finally:
    logging.disable(before)


def names() -> set[str]:
  """Macros that the configuration sets or reads."""
  return set(_macros()) | _references()


def macros(wanted: str) -> dict[str, Any]:
  """Values of several macros, given as words of one text."""
  return {name: macro(name) for name in wanted.split()}


def _parse_binding(binding: str, known: set[str]) -> None:
  name = binding.partition("=")[0].strip()
  if re.fullmatch(r"[A-Z][A-Z0-9_]*", name) and name not in known:
    raise ConfigError(nearest("macro", name, known))
  try:
    with gin.unlock_config():
      gin.parse_config([*_imports(binding), binding])
  except SyntaxError as error:
    raise ConfigError(
      f"`--gin.{binding.replace(' = ', '=', 1)}` is not a gin value. Text needs quotes "
      f"inside quotes: --gin.{name}=\"'text'\"."
    ) from error
  except _WRONG as error:
    raise ConfigError(_explain(error)) from error


def _imports(binding: str) -> list[str]:
  """The imports that a binding needs: gin registers names only where they are used."""
  used = [
    statement.format()
    for statement in gin_config._IMPORTS
    if re.search(rf"(?<![\w.]){re.escape(statement.bound_name())}\.\w", binding)
  ]
  return ["from __gin__ import dynamic_registration", *sorted(used)] if used else []


def _explain(error: Exception) -> str:
  entries = dict(gin_config._REGISTRY.items())
  owner = re.search(r"[Cc]onfigurable '([\w.]+)'", str(error))
  parameters = {}
  if owner and (entry := gin_config._REGISTRY.get_match(owner.group(1))):
    parameters[owner.group(1)] = set(inspect.signature(entry.wrapped).parameters)
  return unparsed(error, set(entries), parameters)


def _macros() -> dict[str, Any]:
  """Macro name -> bound value."""
  return {
    scope: parameters.get("value")
    for (scope, selector), parameters in gin_config._CONFIG.items()
    if selector == "gin.macro"
  }


def _references() -> set[str]:
  """Names of macros that some binding reads."""
  found: set[str] = set()

  def walk(value: Any) -> None:
    if isinstance(value, gin_config.ConfigurableReference):
      if value.selector == "gin.macro":
        found.add("/".join(value.scoped_selector.split("/")[:-1]))
    elif isinstance(value, dict):
      for item in [*value.keys(), *value.values()]:
        walk(item)
    elif isinstance(value, (list, tuple, set)):
      for item in value:
        walk(item)

  for parameters in gin_config._CONFIG.values():
    for value in parameters.values():
      walk(value)
  return found


def _required(value: Any) -> bool:
  if isinstance(value, gin_config.ConfigurableReference):
    return value.scoped_selector.startswith("gin.REQUIRED/")
  return value is gin.REQUIRED


def _check_macros() -> None:
  macros = _macros()
  unset = {name for name, value in macros.items() if _required(value)}
  unset |= {name for name in _references() if name not in macros}
  unset -= {"gin.REQUIRED"}
  if unset:
    flags = " ".join(f"--gin.{name}=..." for name in sorted(unset))
    raise ConfigError(
      f"These macros must be set: {', '.join(sorted(unset))}. Set them in the gin file "
      f"or as {flags}"
    )


def _check_unread() -> None:
  """Refuses a misspelt macro: set, read by nothing, and near one that is read."""
  read = _references()
  for name in sorted(set(_macros()) - read - _vocabulary()):
    close = difflib.get_close_matches(name, sorted(read), 1, 0.75)
    if close:
      raise ConfigError(
        f"The macro {name!r} is set, but nothing reads it. Did you mean {close[0]!r}?"
      )
    logging.warning("The macro %r is set, but nothing reads it.", name)


def _vocabulary() -> set[str]:
  """Macros that some file of the library sets or reads: task files set a few for all
  verbs."""
  pattern = re.compile(r"^([A-Z][A-Z0-9_]*)\s*=|%([A-Z][A-Z0-9_]*)", re.MULTILINE)
  found = [
    match
    for path in gin_folder().glob("**/*.gin")
    for match in pattern.findall(path.read_text(encoding="utf-8"))
  ]
  return {name for pair in found for name in pair if name}


def macro(name: str) -> Any:
  """The value of a macro, its references called."""
  value = _macros()[name]
  return _evaluate(value)


def _evaluate(value: Any) -> Any:
  if isinstance(value, gin_config.ConfigurableReference):
    return value.__deepcopy__({})
  if isinstance(value, (list, tuple)):
    return type(value)(_evaluate(item) for item in value)
  if isinstance(value, dict):
    return {key: _evaluate(item) for key, item in value.items()}
  return value


def text() -> str:
  """The whole configuration as gin text."""
  return gin.config_str(max_line_length=88)

"""gin files and flags: the only room that imports gin.

  python -m prompt_tuning.train --gin_file=RECIPE.gin --gin.NAME=value

Recipes name `gin/...` files relative to the project (or to the installed package) or
to the current directory; `--gin_search_paths=DIR,DIR` adds places.
"""

import difflib
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gin
from gin import config as gin_config

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
    parse_flags(argv, verb.__module__)
    return gin.get_configurable(verb)()
  except (ValueError, OSError) as error:
    print(f"error: {_first_cause(error)}", file=sys.stderr)
    raise SystemExit(2) from error


def _first_cause(error: BaseException) -> str:
  # gin appends where in the configuration a call stood; keep that to the last line.
  text = str(error).strip()
  return text.split("\n  In call to configurable")[0]


def parse_flags(argv: Sequence[str], verb: str) -> None:
  """Reads --gin_file, --gin_search_paths, --gin_bindings and --gin.NAME=value."""
  files, bindings, paths = [], [], []
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
    if name not in ("--gin_file", "--gin_search_paths", "--gin_bindings"):
      raise ConfigError(_unknown_flag(flag))
    if not equals:
      if not arguments:
        raise ConfigError(f"`{name}` needs a value: {name}=VALUE.")
      value = arguments.pop(0)
    if name == "--gin_file":
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
  parse(files, bindings, paths)


def _unknown_flag(flag: str) -> str:
  fix = "--gin.NAME=value" if flag.startswith("--gin") else "--gin_file=FILE"
  return (
    f"Unknown flag {flag!r}. Flags are --gin_file=FILE, --gin_search_paths=DIR,DIR, "
    f"--gin_bindings='NAME = value' and --gin.NAME=value; did you mean {fix}?"
  )


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
  for path in [*paths, *search_paths()]:
    gin.add_config_file_search_path(path)
  try:
    for file in files:
      gin.parse_config_file(file)
  except OSError as error:
    raise ConfigError(_missing_file(str(error), [*paths, *search_paths()])) from error
  except (ValueError, AttributeError, ImportError, SyntaxError, TypeError) as error:
    raise ConfigError(_explain(error)) from error
  known = names()
  for binding in bindings:
    _parse_binding(binding, known)
  if check:
    _check_macros()


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
    # Files register what they import; a binding must see their imports.
    with gin.unlock_config():
      gin.parse_config(binding)
  except SyntaxError as error:
    raise ConfigError(
      f"`--gin.{binding.replace(' = ', '=', 1)}` is not a gin value. Text needs quotes "
      f"inside quotes: --gin.{name}=\"'text'\"."
    ) from error
  except (ValueError, AttributeError, TypeError) as error:
    raise ConfigError(_explain(error)) from error


def _missing_file(text: str, paths: Sequence[str]) -> str:
  found = re.search(r"['\"]([^'\"]+\.gin)['\"]", text) or re.search(r"(\S+\.gin)", text)
  name = found.group(1) if found else text.splitlines()[0]
  nearby = [
    str(file.relative_to(place))
    for place in map(pathlib.Path, paths)
    for top in ("gin", "configs")
    for file in (place / top).glob("**/*.gin")
  ]
  close = difflib.get_close_matches(name, nearby, 1, 0.6)
  hint = f" Did you mean {close[0]!r}?" if close else ""
  return f"There is no configuration file {name!r} under {sorted(set(paths))}.{hint}"


def _explain(error: Exception) -> str:
  text = str(error).strip()
  # "No configurable matching 'x.y'", "... doesn't have a parameter named 'z'"
  match = re.search(r"parameter named '?(\w+)'?", text)
  owner = re.search(r"Configurable '([\w.]+)'|configurable '([\w.]+)'", text)
  if match and owner:
    parameters = _parameters(owner.group(1) or owner.group(2))
    return nearest(
      f"parameter of {owner.group(1) or owner.group(2)}", match.group(1), parameters
    )
  missing = re.search(r"No configurable matching '?([\w./]+)'?", text)
  if missing:
    names = {selector for _, selector in _registered()}
    return nearest("name", missing.group(1), names) + " Is its import missing?"
  return text


def _registered() -> Iterator[tuple[Any, str]]:
  for selector, entry in gin_config._REGISTRY.items():
    yield entry, selector


def _parameters(selector: str) -> set[str]:
  entry = gin_config._REGISTRY.get_match(selector)
  if entry is None:
    return set()
  import inspect

  return set(inspect.signature(entry.wrapped).parameters)


def nearest(kind: str, name: str, known: set[str]) -> str:
  """Says that a name is unknown, and which known one is nearest."""
  close = difflib.get_close_matches(name, sorted(known), 1, 0.5)
  if not close:
    short = {entry.rsplit(".", 1)[-1]: entry for entry in known}
    close = [
      short[s]
      for s in difflib.get_close_matches(name.rsplit(".", 1)[-1], sorted(short), 1, 0.5)
    ]
  hint = f" Did you mean {close[0]!r}?" if close else ""
  return f"There is no {kind} {name!r} in this configuration.{hint}"


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


def differing_lines(old: str, new: str, ignore: Sequence[str]) -> list[str]:
  """Bindings that differ between two configuration texts, but for some macros."""

  def bindings(source: str) -> dict[str, str]:
    joined = re.sub(r"\\\n\s*", "", source)
    found = {}
    for line in joined.splitlines():
      name, equals, value = line.partition(" = ")
      if equals and not line.startswith("#") and name.strip() not in ignore:
        found[name.strip()] = value.strip()
    return found

  left, right = bindings(old), bindings(new)
  return [
    f"{name}: {left.get(name, 'unset')} there, {right.get(name, 'unset')} now"
    for name in sorted(set(left) | set(right))
    if left.get(name) != right.get(name)
  ]

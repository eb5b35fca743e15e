"""gin files and flags: what a run is told, checked whole before anything is made.

  python -m prompt_tuning.train --gin_file=RECIPE.gin --gin.NAME=value

Recipes name `gin/...` and `configs/...` files of the library, and files relative to the
current directory; `--gin_search_paths=DIR,DIR` names places that come before both.
"""

import contextlib
import difflib
import inspect
import logging
import re
import sys
import tokenize
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import gin
from gin import config as gin_config

from prompt_tuning.engine import (
  compilation,
  distributed,
  gin_files,
  gin_state,
  gin_values,
)
from prompt_tuning.engine import flags as flags_
from prompt_tuning.engine import macros as known_macros
from prompt_tuning.engine.explain import ConfigError, missing_file, nearest, unparsed
from prompt_tuning.engine.explain import differing_lines as differing_lines
from prompt_tuning.engine.gin_values import macro as macro
from prompt_tuning.engine.library import brings as brings
from prompt_tuning.engine.library import gin_folder as gin_folder
from prompt_tuning.engine.library import inits as inits
from prompt_tuning.engine.library import methods as methods

# What gin's parser raises where a bracket stays open, or files include each other.
_ENDLESS = (tokenize.TokenError, RecursionError, MemoryError)
# What it raises for anything else that a user wrote.
_WRONG = (ValueError, AttributeError, ImportError, NameError, SyntaxError, TypeError)


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
    print(f"error: {in_macros(one_line(error))}", file=sys.stderr)
    raise SystemExit(2) from error


def call(verb: Callable[..., Any]) -> Any:
  """Calls a function with what the parsed configuration binds to it."""
  return gin.get_configurable(verb)()


def _check_bound(verb: Callable[..., Any]) -> None:
  """Refuses files that leave an argument of the verb open, or bind it to nonsense."""
  bound = gin_values.arguments(verb)
  name = verb.__module__.rsplit(".", 1)[-1]
  needed = inspect.signature(verb).parameters.values()
  open_ = [p.name for p in needed if p.default is p.empty and p.name not in bound]
  if open_:
    raise ConfigError(
      f"The configuration binds no {', '.join(open_)} of {name}.{verb.__qualname__}. "
      f'Add include "gin/{name}.gin" at the top of the gin file, or '
      f"--gin_file=gin/{name}.gin first."
    )
  direct = {gin_values.read_macro(value) for value in bound.values()}
  read = gin_state.reached(direct - {None})
  values = gin_values.plain().items()
  _refuse(known_macros.check({k: v for k, v in values if k in read}, needed=True))
  for owner, function in gin_values.records(verb).items():
    for argument, value in gin_values.plain_arguments(function).items():
      macro = gin_values.ARGUMENTS.get(argument, argument.upper())
      _refuse(known_macros.wrong(macro, value, f"{owner}.{argument}"))


def _refuse(wrong: str | None) -> None:
  if wrong is not None:
    raise ConfigError(wrong)


def one_line(error: BaseException) -> str:
  """What an error says, without what gin appends: where in the files a call stood."""
  text = str(error).strip().split("\n  In call to configurable")[0]
  return " ".join(text.splitlines())


def in_macros(text: str) -> str:
  """A message with the macros that were set in place of the arguments behind them."""

  def macro_of(found: re.Match[str]) -> str:
    name = gin_values.behind(found.group(1))
    return found.group() if name is None else f"`{name}`"

  text = re.sub(r"`([A-Z]\w+\.\w+)`", macro_of, text)
  # Where a message names both.
  text = re.sub(r"`(\w+)`((?: = \w+)?) \(\1(?: in gin)?\)", r"`\1`\2", text)
  return re.sub(r"`(\w+)`, \1 in gin,", r"`\1`", text)


def parse_flags(
  argv: Sequence[str], verb: str, check: bool = True, others: Collection[str] = ()
) -> distributed.Cluster:
  """Reads --gin_file, --gin_search_paths, --gin_bindings and --gin.NAME=value.

  With `check=False`, macros may stay unset; `others` are flags that the verb reads
  itself.

  Returns:
    What flags and the environment say of other processes.
  """
  given = flags_.read(argv, verb, others)
  if given.help:
    print(f"python -m {verb} --gin_file=FILE [--gin.NAME=value ...]\n\n{__doc__}")
    raise SystemExit(0)
  parse(given.files, given.bindings, given.paths, check)
  if own := gin_files.shadowed():
    logging.warning(
      "The library's %s was read, not the file of the same name in this folder. To "
      "read yours, add --gin_search_paths=. or rename it.",
      ", ".join(own[:3]) + (f" and {len(own) - 3} more" if len(own) > 3 else ""),
    )
  return given.cluster


def parse(
  files: Sequence[str],
  bindings: Sequence[str] = (),
  paths: Sequence[str] = (),
  check: bool = True,
) -> None:
  """Replaces the configuration by files and bindings, and checks it whole.

  With `check=False`, macros may stay unset, so that `names` can be asked for them.

  Raises:
    ConfigError: for an unknown file or name (the nearest is suggested), for a value
      that its macro cannot have, or for macros that must be set and are not (all are
      listed).
  """
  gin.clear_config()
  places = gin_files.search(paths)
  for file in files:
    _parse_file(file, places)
  known = names()
  for binding in bindings:
    _parse_binding(binding, known)
  if check:
    _check_macros()
    _check_unread()
  _refuse(known_macros.check(gin_values.plain()))


def _parse_file(file: str, places: Sequence[str]) -> None:
  try:
    with _quiet():
      gin.parse_config_file(file)
  except UnicodeDecodeError as error:
    raise ConfigError(f"{file}, or a file it includes, is not UTF-8.") from error
  except OSError as error:
    raise ConfigError(missing_file(error, places)) from error
  except _ENDLESS as error:
    raise ConfigError(
      f"{file}, or a file it includes, includes itself or leaves a bracket open."
    ) from error
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
  return set(gin_values.bound()) | gin_values.references()


def is_phased() -> bool:
  """Whether the configuration describes a run of several phases."""
  return gin_values.plain().get("PROCEDURE") is not None


def macros(wanted: str) -> dict[str, Any]:
  """Values of several macros, given as words of one text."""
  return {name: macro(name) for name in wanted.split()}


def _parse_binding(binding: str, known: set[str]) -> None:
  name, _, value = (part.strip() for part in binding.partition("="))
  if re.fullmatch(r"[A-Za-z_]\w*", name) and name not in known:
    if file := known_macros.named().get(name):
      raise ConfigError(
        f"No file of this configuration reads the macro {name}; {file} does. Leave it "
        f"out, or add --gin_file={file}."
      )
    raise ConfigError(nearest("macro", name, known))
  if (behind := gin_values.behind(name)) is not None:
    raise ConfigError(
      f"`--gin.{name}={value}` goes past the macro {behind}, which stands there and "
      f"may be read elsewhere too. Give --gin.{behind}={value}."
    )
  try:
    with gin.unlock_config():
      gin.parse_config([*_imports(binding), binding])
  except (SyntaxError, *_ENDLESS) as error:
    raise ConfigError(_no_value(name, value)) from error
  except _WRONG as error:
    moved = "parameter named" in str(error) and name.rpartition(".")[2].upper() in known
    if "." in name and ("values to unpack" in str(error) or moved):
      raise ConfigError(_no_argument(name, value, known)) from error
    raise ConfigError(_explain(error)) from error


def _no_value(name: str, value: str) -> str:
  """What to say of a flag whose value gin cannot read."""
  row = known_macros.TABLE.get(name)
  if row is not None and not row.kind.text:
    cure = None if value[:1] in "([{@%" else row.kind.cure(value)
    return known_macros.said(name, value or "empty", cure)
  return (
    f"`--gin.{name}={value}` is not a gin value. Text needs quotes inside quotes: "
    f"--gin.{name}=\"'text'\"."
  )


def _no_argument(name: str, value: str, known: set[str]) -> str:
  """What to say of a dotted name that names no argument."""
  macro = name.rpartition(".")[2].upper()
  fix = f"Give --gin.{macro}={value}." if macro in known else "Or set a macro."
  return (
    f"`--gin.{name}={value}` names no argument, which is written MODULE.NAME.ARGUMENT. "
    f"{fix}"
  )


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


def _check_macros() -> None:
  macros = gin_values.bound()
  unset = {name for name, value in macros.items() if gin_values.required(value)}
  unset |= {name for name in gin_values.references() if name not in macros}
  if unset:
    flags = " ".join(f"--gin.{name}=..." for name in sorted(unset))
    raise ConfigError(
      f"These macros must be set: {', '.join(sorted(unset))}. Set them in the gin file "
      f"or as {flags}"
    )


def _check_unread() -> None:
  """Refuses a misspelt macro: set, read by nothing, and near one that is read.

  Macros of the library may stay unread: task files set a few for all verbs.
  """
  read = {name.lower(): name for name in sorted(gin_values.references())}
  unread = set(gin_values.bound()) - set(read.values()) - set(known_macros.TABLE)
  for name in sorted(unread):
    close = difflib.get_close_matches(name.lower(), list(read), 1, 0.75)
    if close:
      raise ConfigError(
        f"The macro {name!r} is set, but nothing reads it. Did you mean "
        f"{read[close[0]]!r}?"
      )
    logging.warning("The macro %r is set, but nothing reads it.", name)


def text() -> str:
  """The whole configuration as gin text."""
  return gin.config_str(max_line_length=88)

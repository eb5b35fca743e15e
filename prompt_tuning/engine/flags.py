"""The flags of a verb, read into what they ask for."""

import argparse
import dataclasses
import difflib
import sys
from collections.abc import Collection, Sequence
from typing import NoReturn

from prompt_tuning.engine import distributed
from prompt_tuning.engine.explain import ConfigError
from prompt_tuning.engine.macro_table import TABLE

# Flags that a value follows.
VALUED = ("--gin_file", "--gin_search_paths", "--gin_bindings", *distributed.FLAGS)
SWITCHES = ("--multiprocess", "--multiprocess_gpu")


@dataclasses.dataclass(frozen=True)
class Flags:
  """Attributes:
  files, bindings, paths: of gin. cluster: the other processes.
  help: whether only the usage was asked for.
  """

  files: Sequence[str] = ()
  bindings: Sequence[str] = ()
  paths: Sequence[str] = ()
  cluster: distributed.Cluster = distributed.Cluster()
  help: bool = False


class Parser(argparse.ArgumentParser):
  """Says what is wrong in one line, with the nearest flag for one that is unknown."""

  def error(self, message: str) -> NoReturn:
    unknown = message.partition("unrecognized arguments: ")[2].split()
    known = [flag for action in self._actions for flag in action.option_strings]
    for flag in unknown:
      close = difflib.get_close_matches(flag.partition("=")[0], known, 1, 0.5)
      message += f"; did you mean {close[0]}?" if close else ""
    fix = "" if "?" in message or "choose from" in message else " (--help lists all)"
    print(f"error: {' '.join(message.splitlines())}{fix}", file=sys.stderr)
    raise SystemExit(2)


def read(argv: Sequence[str], verb: str, others: Collection[str] = ()) -> Flags:
  """Reads --gin_file, --gin_search_paths, --gin_bindings, --gin.NAME=value and more.

  Args:
    argv: the arguments. verb: the module that is run. others: flags that the verb has
      taken out itself, to suggest them.

  Raises:
    ConfigError: for an unknown flag (the nearest is suggested) or one without a value.
  """
  found: dict[str, list[str]] = {name: [] for name in VALUED}
  detect = False
  arguments = list(argv)
  while arguments:
    flag = arguments.pop(0)
    if flag in ("-h", "--help"):
      return Flags(help=True)
    name, equals, value = flag.partition("=")
    if name.startswith("--gin.") and equals:
      found["--gin_bindings"].append(f"{name[len('--gin.') :]} = {value}")
      continue
    if name in SWITCHES and not equals:
      detect = True
      continue
    if name not in VALUED:
      raise ConfigError(_unknown(flag, others))
    if not equals and arguments:
      value = arguments.pop(0)
    if not value:
      raise ConfigError(f"`{name}` needs a value: {name}=VALUE.")
    found[name].append(value)
  if not found["--gin_file"]:
    raise ConfigError(
      f"No configuration: python -m {verb} --gin_file=configs/... "
      "[--gin.MODEL_DIR=\"'runs/name'\"]."
    )
  processes = {name: found[name][-1] for name in distributed.FLAGS if found[name]}
  paths = [path for value in found["--gin_search_paths"] for path in value.split(",")]
  return Flags(
    found["--gin_file"],
    found["--gin_bindings"],
    paths,
    distributed.cluster(processes, detect),
  )


def _unknown(flag: str, others: Collection[str]) -> str:
  return (
    f"Unknown flag {flag!r}. Flags are --gin_file=FILE, --gin_search_paths=DIR,DIR, "
    f"--gin_bindings='NAME = value' and --gin.NAME=value, and for several processes "
    f"{', '.join(distributed.FLAGS)} or --multiprocess"
    + (f", and here {', '.join(others)}" if others else "")
    + f"; did you mean {_meant(flag, others)}?"
  )


def _meant(flag: str, others: Collection[str]) -> str:
  name, equals, value = flag.partition("=")
  bare = name.lstrip("-")
  if (macro := bare.rpartition(".")[2].upper()) in TABLE:
    return f"--gin.{macro}={value or 'VALUE'}"
  if bare.startswith("gin.") or "." in bare.split("/")[0] and not flag.endswith(".gin"):
    return "--gin.NAME=value"
  known = [*VALUED, *SWITCHES, *others]
  close = difflib.get_close_matches(f"--{bare}", known, 1, 0.6)
  if not close:
    return "--gin_file=FILE"
  return f"{close[0]}={value}" if equals else close[0]

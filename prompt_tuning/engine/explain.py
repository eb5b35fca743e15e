"""Words for what is wrong with a configuration; knows gin's messages, not gin."""

import difflib
import importlib
import pathlib
import pkgutil
import re
from collections.abc import Collection, Sequence

# Modules and functions of a message such as "<module 'a.b' from ...>".
_MODULE = re.compile(r"<module '([\w.]+)'")

# What T5X's words for partitioning map to.
_T5X = {
  "PjitPartitioner": "SHARDING here (`sharding.Sharding`)",
  "num_partitions": "NUM_PARTITIONS, the size of the model axis",
  "model_parallel_submesh": "MODEL_PARALLEL_SUBMESH, whose product is that size",
  "logical_axis_rules": "AXIS_RULES, pairs of a name and a mesh axis",
  "activation_partitioning_dims": "written out in AXIS_RULES",
  "parameter_partitioning_dims": "written out in AXIS_RULES (2: fully_sharded.gin)",
}


class ConfigError(ValueError):
  """A configuration that cannot run; the message says what to change."""


def nearest(kind: str, name: str, known: Collection[str]) -> str:
  """Says that a name is unknown, and which known one is nearest."""
  lower = {entry.lower(): entry for entry in sorted(known)}
  found = difflib.get_close_matches(name.lower(), list(lower), 1, 0.5)
  close = [lower[entry] for entry in found]
  if not close:
    short = {entry.rsplit(".", 1)[-1]: entry for entry in known}
    last = name.rsplit(".", 1)[-1]
    close = [short[s] for s in difflib.get_close_matches(last, sorted(short), 1, 0.5)]
  hint = f" Did you mean {close[0]!r}?" if close else ""
  return f"There is no {kind} {name!r} in this configuration.{hint}"


def missing_file(error: OSError, paths: Sequence[str]) -> str:
  """Which gin file is not there, and which one is nearest."""
  text = str(error)
  found = re.search(r"Unable to open file: (.*?)\. Searched", text)
  name = found.group(1) if found else text.splitlines()[0]
  nearby = [
    str(file.relative_to(place))
    for place in map(pathlib.Path, paths)
    for top in ("gin", "configs")
    for file in (place / top).glob("**/*.gin")
  ]
  close = difflib.get_close_matches(name, nearby, 1, 0.6)
  hint = f" Did you mean {close[0]!r}?" if close else ""
  where = f"{_where(text)}There is no configuration file {name!r} under"
  return f"{where} {sorted(set(paths))}.{hint}"


def unparsed(
  error: Exception, names: Collection[str], parameters: dict[str, Collection[str]]
) -> str:
  """One line for what gin says.

  Args:
    error: what its parser raised.
    names: of everything that is registered.
    parameters: names of arguments, by the name of who takes them.
  """
  text = str(error).strip()
  return _where(text) + _cause(error, text, names, parameters) + _of_t5x(text)


def differing_lines(old: str, new: str, ignore: Sequence[str]) -> list[str]:
  """Bindings that differ between two configuration texts, but for some of them."""
  left, right = bindings(old, ignore), bindings(new, ignore)
  return [
    f"{name}: {left.get(name, 'unset')} there, {right.get(name, 'unset')} now"
    for name in sorted(set(left) | set(right))
    if left.get(name) != right.get(name)
  ]


def bindings(source: str, ignore: Sequence[str] = ()) -> dict[str, str]:
  """Name -> value of a configuration text; a long value fills indented lines."""
  found: dict[str, str] = {}
  name = None
  for line in source.splitlines():
    if name and line[:1].isspace():
      found[name] += line.strip() + " "
      continue
    name, equals, value = line.partition(" = ")
    if not equals or line.startswith("#"):
      name = None
      continue
    found[name] = value.removesuffix("\\")
  return {name: value.strip() for name, value in found.items() if name not in ignore}


def _where(text: str) -> str:
  place = re.search(r'In file "([^"]+)", line (\d+)', text)
  return f"{place.group(1)} line {place.group(2)}: " if place else ""


def _cause(
  error: Exception,
  text: str,
  names: Collection[str],
  parameters: dict[str, Collection[str]],
) -> str:
  owner = re.search(r"[Cc]onfigurable '([\w.]+)'", text)
  wrong = re.search(r"parameter named '?(\w+)'?", text)
  if owner and wrong:
    known = parameters.get(owner.group(1), ())
    return nearest(f"parameter of {owner.group(1)}", wrong.group(1), known)
  missing = re.search(r"No configurable matching (?:reference )?'@?([\w./]+)", text)
  if missing:
    return nearest("name", missing.group(1), names) + " Is its import missing?"
  attribute = re.search(r"Couldn't resolve selector ([\w.]+)", text)
  module = _MODULE.search(text)
  if attribute and module:
    return nearest("name", attribute.group(1), _public(module.group(1)))
  unknown = re.search(r"No module named '([\w.]+)'", text)
  if unknown:
    return nearest("module", unknown.group(1), _beside(unknown.group(1)))
  first = text.split("\n  In file")[0].split("\n  In bindings")[0]
  if isinstance(error, SyntaxError):
    # The last line names the file and the token; what stands before it is Python's.
    return f"{first.splitlines()[-1].strip()}. Is it text without quotes?"
  return first.replace("\n", " ")


def _public(module: str) -> list[str]:
  short = module.rsplit(".", 1)[-1]
  found = vars(importlib.import_module(module))
  return [f"{short}.{name}" for name in found if not name.startswith("_")]


def _beside(name: str) -> list[str]:
  """Modules in the package that a missing module was looked for in."""
  package, _, _ = name.rpartition(".")
  try:
    places = importlib.import_module(package).__path__ if package else None
  except (ImportError, AttributeError):
    return []
  prefix = f"{package}." if package else ""
  return [prefix + entry.name for entry in pkgutil.iter_modules(places)]


def _of_t5x(text: str) -> str:
  """What T5X's words for partitioning map to, where a text holds one of them."""
  found = [f"{word} is {meaning}" for word, meaning in _T5X.items() if word in text]
  return f" From T5X: {'; '.join(found)}. See gin/sharding/." if found else ""

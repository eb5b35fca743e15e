"""A prompt module as plain data and back, so that a saved prompt needs no gin.

Only words of methods are built, those of this library or of a module that the reader
has already imported: a file cannot name code to load, nor a class to build that is no
part of a prompt.
"""

import dataclasses
import importlib
import math
import re
import reprlib
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn

from prompt_tuning.core.places import At

PACKAGE = "prompt_tuning"
# Where the words of methods live; what they build with (`blocks`) is theirs alone.
ROOMS = (
  "prompt_tuning.core.prompt",
  "prompt_tuning.core.gallery",
  "prompt_tuning.core.places",
  "prompt_tuning.conditions",
  "prompt_tuning.parameterisers",
  "prompt_tuning.transforms",
  "prompt_tuning.heads",
)
# Sites of cards that were written when each was a class, and their places today.
SITES = {
  "prompt_tuning.sites.inputs:EncoderInput": "encoder.input",
  "prompt_tuning.sites.inputs:DecoderInput": "decoder.input",
  "prompt_tuning.sites.key_values:EncoderKeyValues": "encoder.kv",
  "prompt_tuning.sites.key_values:DecoderKeyValues": "decoder.kv",
}
# Packages whose modules are layers and no words.
NEVER = ("flax", "jax", "jaxlib", "optax", "orbax", "clu", "seqio")
# Sentences are three or four deep, and have some hundred parts at the most.
DEEPEST = 32
MOST_PARTS = 4096
# The key of a module that was described before.
SAME = "same"


def describe(part: Any) -> Any:
  """JSON-able description of a word, its parts and its numbers.

  How parameters are first drawn is left out: a saved prompt has its own. A module that
  stands in several places is one set of parameters: each mention after the first is
  {"same": path of the first}, such as "prompts/0/condition".
  """
  return _described(part, "", {})


def _described(part: Any, path: str, seen: dict[int, str]) -> Any:
  def inner(key: Any, value: Any) -> Any:
    return _described(value, _below(path, key), seen)

  if dataclasses.is_dataclass(part) and not isinstance(part, type):
    if isinstance(part, nn.Module) and seen.setdefault(id(part), path) != path:
      return {SAME: seen[id(part)]}
    fields = {
      field.name: inner(field.name, getattr(part, field.name))
      for field in dataclasses.fields(part)
      if field.init and field.name not in ("parent", "name") and not drawn(field.name)
    }
    return {"class": f"{type(part).__module__}:{type(part).__qualname__}", **fields}
  if isinstance(part, (list, tuple)):
    return [inner(i, item) for i, item in enumerate(part)]
  if isinstance(part, Mapping):
    return {key: inner(key, value) for key, value in part.items()}
  if part is None or isinstance(part, (bool, int, float, str)):
    return part
  raise ValueError(
    f"A word of a method holds {part!r}, which cannot be written to card.json. Use "
    "numbers, texts, dataclasses and Flax modules for its fields; a field that only "
    "draws parameters must be named `initializer` or end in `_initializer`."
  )


def drawn(name: str) -> bool:
  """Whether a field only says how parameters are first drawn."""
  return name == "initializer" or name.endswith("_initializer")


class Allowed(NamedTuple):
  """What a card may build.

  Attributes:
    rooms: modules and packages of this library that hold it. kinds: its classes.
    what: a name for it.
  """

  rooms: Sequence[str]
  kinds: tuple[type, ...]
  what: str


METHODS = Allowed(ROOMS, (At, nn.Module), "a word of a method")


def rebuild(data: Any, allowed: Allowed = METHODS) -> Any:
  """The inverse of `describe`; initialisers are None.

  Raises:
    ValueError: if a class is none of `allowed` (see `word`), or does not take what
      is stated for it, or "same" names no module that stands before it.
  """
  return _Reader(allowed)(data, "", 0)


def _below(path: str, key: Any) -> str:
  return f"{path}/{key}" if path else str(key)


class _Reader:
  """Builds what a card describes.

  Attributes:
    made: path of a module -> (the module, how many parts it has).
    parts: parts so far; those of a module that is mentioned again count again.
    allowed: what may be built.
  """

  def __init__(self, allowed: Allowed) -> None:
    self.allowed = allowed
    self.made: dict[str, tuple[Any, int]] = {}
    self.parts = 0

  def __call__(self, data: Any, path: str, depth: int) -> Any:
    if depth > DEEPEST:
      raise ValueError(f"A module in card.json is nested more than {DEEPEST} deep.")
    self._count(1)

    def inner(key: Any, value: Any) -> Any:
      return self(value, _below(path, key), depth + 1)

    if isinstance(data, Mapping) and set(data) == {SAME}:
      return self._again(data[SAME])
    if isinstance(data, Mapping) and "class" in data:
      before = self.parts
      rest = {key: value for key, value in data.items() if key != "class"}
      if data["class"] in SITES and not rest:
        return SITES[data["class"]]
      cls = word(data["class"], self.allowed)
      built = _built(cls, data["class"], {k: inner(k, v) for k, v in rest.items()})
      if isinstance(built, nn.Module):
        self.made[path] = built, self.parts - before
      return built
    if isinstance(data, Mapping):
      return {key: inner(key, value) for key, value in data.items()}
    if isinstance(data, Sequence) and not isinstance(data, str):
      return tuple(inner(i, item) for i, item in enumerate(data))
    if isinstance(data, float) and not math.isfinite(data):
      raise ValueError(f"A module in card.json holds the number {data}.")
    return data

  def _again(self, path: Any) -> Any:
    if not isinstance(path, str) or path not in self.made:
      raise ValueError(
        f"card.json says that a module is the same as {path!r}, where none stands "
        "before it."
      )
    found, parts = self.made[path]
    self._count(parts)
    return found

  def _count(self, parts: int) -> None:
    self.parts += parts
    if self.parts > MOST_PARTS:
      raise ValueError(f"A module in card.json has more than {MOST_PARTS} parts.")


def _built(cls: type, path: str, fields: dict[str, Any]) -> Any:
  names = {f.name: f for f in dataclasses.fields(cls) if f.init}
  # Flax's own two fields are set where a module is used, not where it is described.
  unknown = sorted(set(fields) - (set(names) - {"parent", "name"}))
  if unknown:
    raise ValueError(
      f"{path} has no fields {unknown}: the prompt was saved by another "
      "version of its code."
    )
  for name, field in names.items():
    if drawn(name):
      fields.pop(name, None)
      if _required(field):
        fields[name] = None
    elif _required(field) and name not in fields:
      raise ValueError(f"card.json gives {path} no {name!r}.")
  hints = typing.get_type_hints(cls)
  for name, value in fields.items():
    if not drawn(name) and not _suits(value, hints[name]):
      raise ValueError(
        f"card.json gives {path} the {name} {reprlib.repr(value)}, which is not of its "
        "kind."
      )
  try:
    return cls(**fields)
  except (TypeError, AttributeError) as error:
    raise ValueError(f"card.json describes no {path}: {error}.") from error


def _suits(value: Any, hint: Any) -> bool:
  """Whether a value is of the kind that a field of a word says; unsaid kinds do."""
  origin, inner = typing.get_origin(hint), typing.get_args(hint)
  if origin in (typing.Union, types.UnionType):
    return any(_suits(value, one) for one in inner)
  if origin is typing.Literal:
    return value in inner
  if origin is Sequence and inner:
    return isinstance(value, tuple) and all(_suits(one, inner[0]) for one in value)
  if origin is Mapping and inner:
    held = value.values() if isinstance(value, Mapping) else [None]
    return isinstance(value, Mapping) and all(_suits(one, inner[1]) for one in held)
  if hint is int:
    return type(value) is int and abs(value) < 2**63
  if hint is float:
    return type(value) is float or _suits(value, int)
  if hint in (bool, str, types.NoneType, At):
    return isinstance(value, hint)
  if isinstance(hint, type) and issubclass(hint, nn.Module):
    return isinstance(value, hint)
  return True


def _required(field: dataclasses.Field) -> bool:
  return (
    field.default is dataclasses.MISSING
    and field.default_factory is dataclasses.MISSING
  )


def word(path: Any, allowed: Allowed = METHODS) -> type:
  """The class that a card names, if it is one of `allowed`.

  Of methods those are the words of `ROOMS`, and Flax modules of other packages that the
  reader has imported: a card can neither import code from outside of this library nor
  build what is no part of a prompt.

  Args:
    path: "module:Class".

  Raises:
    ValueError: for anything else.
  """
  module, _, name = path.partition(":") if isinstance(path, str) else ("", "", "")
  own = module.partition(".")[0] == PACKAGE
  refused = ValueError(f"card.json names {path!r}, which is not {allowed.what}.")
  if own and not any(_within(module, room) for room in allowed.rooms):
    raise refused
  if own and name.isidentifier() and re.fullmatch(r"[\w.]+", module):
    try:
      importlib.import_module(module)
    except ImportError as error:
      raise ValueError(f"card.json names {path!r}, which does not exist.") from error
  if module not in sys.modules:
    raise ValueError(
      f"card.json names {path!r}; import the module {module!r} before you load this "
      "prompt, if you trust it."
    )
  found = vars(sys.modules[module]).get(name)
  if not _is_word(found, module, allowed.kinds):
    raise refused
  return found


def _within(module: str, room: str) -> bool:
  return module == room or module.startswith(f"{room}.")


def _is_word(found: Any, module: str, kinds: tuple[type, ...]) -> bool:
  if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
    return False
  # A name that a module merely imported is another module's class.
  if found.__module__ != module or module.partition(".")[0] in NEVER:
    return False
  return issubclass(found, kinds)

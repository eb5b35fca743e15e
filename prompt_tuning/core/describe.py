"""A prompt module as plain data and back, so that a saved prompt needs no gin.

Only classes of this library, or of a module that the reader has already imported, are
built: a file cannot name code to load.
"""

import dataclasses
import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

ROOT = "prompt_tuning."


def describe(part: Any) -> Any:
  """JSON-able description of a word, its parts and its numbers.

  How parameters are first drawn is left out: a saved prompt has its own.
  """
  if dataclasses.is_dataclass(part) and not isinstance(part, type):
    fields = {
      field.name: describe(getattr(part, field.name))
      for field in dataclasses.fields(part)
      if field.init and field.name not in ("parent", "name") and not drawn(field.name)
    }
    return {"class": f"{type(part).__module__}:{type(part).__qualname__}", **fields}
  if isinstance(part, (list, tuple)):
    return [describe(item) for item in part]
  if isinstance(part, Mapping):
    return {key: describe(value) for key, value in part.items()}
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


def rebuild(data: Any) -> Any:
  """The inverse of `describe`; initialisers are None.

  Raises:
    ValueError: if a class is neither this library's nor already imported.
  """
  if isinstance(data, Mapping) and "class" in data:
    cls = _find(str(data["class"]))
    fields = {k: rebuild(v) for k, v in data.items() if k != "class"}
    names = {field.name: field for field in dataclasses.fields(cls)}
    unknown = sorted(set(fields) - set(names))
    if unknown:
      raise ValueError(
        f"{data['class']} has no fields {unknown}: the prompt was saved by another "
        "version of its code."
      )
    for name, field in names.items():
      required = (
        field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
      )
      if drawn(name) and required:
        fields[name] = None
    return cls(**fields)
  if isinstance(data, Mapping):
    return {key: rebuild(value) for key, value in data.items()}
  if isinstance(data, Sequence) and not isinstance(data, str):
    return tuple(rebuild(item) for item in data)
  return data


def _find(path: str) -> Any:
  module, _, name = path.partition(":")
  if module.startswith(ROOT):
    try:
      importlib.import_module(module)
    except ImportError as error:
      raise ValueError(f"card.json names {path!r}, which does not exist.") from error
  if module not in sys.modules:
    raise ValueError(
      f"card.json names {path!r}; import the module {module!r} before you load this "
      "prompt, if you trust it."
    )
  found = getattr(sys.modules[module], name, None)
  if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
    raise ValueError(f"card.json names {path!r}, which is not a word of a method.")
  return found

"""What a caller hands over in Python, checked in the caller's words.

Lists may come as tuples, generators, numpy arrays of text or columns of a data frame,
where it is plain what is meant.
"""

import reprlib
from collections.abc import Mapping, Set
from typing import Any

import numpy as np

from prompt_tuning.data import lists, texts
from prompt_tuning.engine.product import Product
from prompt_tuning.interop.load import Loaded

Pair = tuple[str, str]


def check_model(model: Any, prompt: Any = None) -> None:
  """Raises ValueError unless these came from `load_model`, `tune` or `load_prompt`."""
  if not isinstance(getattr(model, "loaded", None), Loaded):
    raise ValueError(
      f"`model` is {reprlib.repr(model)}; give what `load_model` returns."
    )
  if prompt is not None and not isinstance(prompt, Product):
    raise ValueError(
      f"`prompt` is {reprlib.repr(prompt)}; give what `tune` or `load_prompt` returns, "
      "or None for the bare model."
    )


def whole(name: str, value: Any, least: int, most: int = 2**31 - 1) -> int:
  """The value as an int; raises ValueError unless it is a whole number in the range."""
  number = isinstance(value, int | np.integer) and not isinstance(value, bool)
  if not number or not least <= value <= most:
    raise ValueError(
      f"`{name}` is {value!r}; it must be a whole number from {least} to {most}."
    )
  return int(value)


def inputs(name: str, values: Any) -> list[Any]:
  """A list of texts, or of {column: text}."""
  found = _items(name, values, '["a film"]')
  for i, value in enumerate(found):
    if not isinstance(value, str | Mapping):
      raise ValueError(f"`{name}[{i}]` is {reprlib.repr(value)}; it must be a text.")
  return found


def flag(name: str, value: Any) -> bool | None:
  """True, False or None; raises ValueError for anything else."""
  if value is not None and not isinstance(value, bool | np.bool_):
    raise ValueError(f"`{name}` is {value!r}; it must be True, False or None.")
  return None if value is None else bool(value)


def text(name: str, value: Any) -> str:
  """The value; raises ValueError unless it is a text."""
  if not isinstance(value, str):
    raise ValueError(f"`{name}` is {reprlib.repr(value)}; it must be a text.")
  return value


def template(name: str, value: Any) -> str | None:
  """A text with columns in braces, or None."""
  if value is not None and not isinstance(value, str):
    raise ValueError(
      f"`{name}` is {reprlib.repr(value)}; it must be a template such as "
      "'review: {text}'."
    )
  return value


def labels(values: Any) -> tuple[str, ...]:
  """Different texts to choose among, in their order."""
  name = "labels"
  found = _items(name, values, '["negative", "positive"]')
  if not found:
    raise ValueError("`labels` is empty; name the answers to choose among.")
  seen: set[str] = set()
  for i, label in enumerate(found):
    if not isinstance(label, str):
      raise ValueError(
        f"`labels[{i}]` is {reprlib.repr(label)}; labels are texts that the model "
        f"writes, such as {str(label)!r} or a word for it."
      )
    if not label.strip():
      raise ValueError(f"`labels[{i}]` is {str(label)!r}; a label must not be empty.")
    fault = texts.no_text(label)
    if fault:
      raise ValueError(f"`labels[{i}]` is {texts.short(label)}, which has {fault}.")
    if label in seen:
      raise ValueError(f"`labels` names {str(label)!r} twice; name each label once.")
    seen.add(label)
  return tuple(str(label) for label in found)


def pairs(name: str, values: Any) -> list[Pair]:
  """(input, target) pairs from a list, a generator, an array [N 2] or two columns."""
  example = '[("a film", "good")]'
  if _is_frame(values):
    columns = list(values.columns)
    if len(columns) != 2:
      raise ValueError(
        f"`{name}` is a table of the columns {columns}; give the two that hold inputs "
        f'and targets: {name}=table[["input", "target"]].'
      )
    values = values.itertuples(index=False, name=None)
  found = _items(name, values, example)
  if not found:
    raise ValueError(f"`{name}` is empty; give at least one (input, target) pair.")
  return lists.pairs(found, name)


def _is_frame(values: Any) -> bool:
  return hasattr(values, "columns") and hasattr(values, "itertuples")


def _items(name: str, values: Any, example: str) -> list[Any]:
  """The items of an ordered collection."""
  if _is_frame(values):
    raise ValueError(
      f"`{name}` is a table of the columns {list(values.columns)}; give one of them: "
      f'{name}=table["{next(iter(values.columns), "column")}"].'
    )
  if hasattr(values, "tolist"):
    # numpy's texts and pandas' columns become Python's.
    values = values.tolist()
  if isinstance(values, str | bytes):
    raise ValueError(
      f"`{name}` is the one text {reprlib.repr(values)}; give a list: {name}={example}."
    )
  unordered = isinstance(values, Mapping | Set) and not isinstance(
    values, type({}.keys())
  )
  if unordered or not hasattr(values, "__iter__"):
    raise ValueError(
      f"`{name}` is {reprlib.repr(values)} ({type(values).__name__}); give a list: "
      f"{name}={example}."
    )
  return list(values)

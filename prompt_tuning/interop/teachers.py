"""Prompts that an objective learns from, read from where they were saved."""

from collections.abc import Mapping
from typing import Any

from prompt_tuning.engine.product import Product
from prompt_tuning.interop import prompts


def read(teachers: Mapping[str, Any], loaded: Any) -> dict[str, Product]:
  """name -> product, of name -> folder or product, on the backbone of the run.

  Args:
    teachers: TEACHERS. loaded: the backbone, `interop.load.Loaded`.

  Raises:
    ValueError: for what is no mapping; naming the teacher that cannot be read or
      belongs elsewhere.
  """
  if not isinstance(teachers, Mapping):
    raise ValueError(
      f"`TEACHERS` is {teachers!r}; it must be a mapping, such as "
      "{'source': 'folder/of/its/prompt'}."
    )
  found = {}
  for name, folder in teachers.items():
    try:
      given = isinstance(folder, Product)
      found[name] = folder if given else prompts.load(folder)
      found[name].check(loaded.fingerprint, loaded.backbone.spec.width)
    except ValueError as error:
      shown = "" if isinstance(folder, Product) else f" {folder!r}:"
      raise ValueError(f"`TEACHERS` names {name!r}:{shown} {error}") from error
  return found

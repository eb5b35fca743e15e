"""Prompts that an objective learns from, read from where they were saved."""

from collections.abc import Mapping
from typing import Any

from prompt_tuning.engine.product import Product
from prompt_tuning.interop import prompts


def read(teachers: Mapping[str, str], loaded: Any) -> dict[str, Product]:
  """name -> product, of name -> folder; all of them on the backbone of the run.

  Args:
    teachers: TEACHERS. loaded: the backbone, `interop.load.Loaded`.

  Raises:
    ValueError: naming the teacher that cannot be read or belongs elsewhere.
  """
  found = {}
  for name, folder in teachers.items():
    try:
      found[name] = prompts.load(folder)
      found[name].check(loaded.fingerprint, loaded.backbone.spec.width)
    except ValueError as error:
      raise ValueError(f"`TEACHERS` names {name!r}: {folder!r}: {error}") from error
  return found

"""Where a backbone lies: a folder here, a remote one, or one of Hugging Face's Hub."""

from typing import Any

from prompt_tuning.core import files
from prompt_tuning.core.folders import current
from prompt_tuning.data import vocabularies
from prompt_tuning.interop import hub

BYTE_ROWS = 384


def find(path: str) -> Any:
  """The folder or file that a path means, as `pathlib.Path` or `epath.Path`.

  Args:
    path: local; remote, such as gs://bucket/model; or `owner/name` of the Hub, where
      nothing of that name is here, with `@revision` behind it if wanted.

  Raises:
    ValueError: if it is a Hub id that cannot be had.
  """
  if files.is_remote(path):
    return files.at(path)
  place = files.at(path)
  if place.exists() or not hub.is_id(path):
    return place
  return hub.snapshot(path)


def vocabulary(folder: Any, rows: int) -> str | None:
  """The vocabulary in a folder, "bytes" for ByT5's number of rows, or None."""
  for name in vocabularies.NAMES:
    if current(folder, name).is_file():
      return str(current(folder, name))
  return "bytes" if rows == BYTE_ROWS else None

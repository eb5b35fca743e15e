"""Which file a name in gin stands for.

First the places of `--gin_search_paths`, then the library for the names that it has
(`gin/...`, `configs/...`), then the current directory. gin files are code: a file of
the same name that lies in the current directory must not run in place of ours.
"""

import pathlib
import re
from collections.abc import Sequence

from gin import config as gin_config
from gin import resource_reader

from prompt_tuning.core.files import at
from prompt_tuning.engine import library
from prompt_tuning.engine.explain import ConfigError

# Stands in front of names that are looked for in the library.
_LIBRARY = "prompt_tuning:"
# Names that the last `search` found in the library.
_taken: list[str] = []


def search(paths: Sequence[str] = ()) -> list[str]:
  """Sets where files are looked for, in this order; returns the places, to show.

  Raises:
    ConfigError: if one of `paths` is no folder.
  """
  for path in paths:
    if not path or not at(path).is_dir():
      raise ConfigError(
        f"`--gin_search_paths` names {path!r}, which is no folder. Give folders that "
        "exist, with commas between them, or leave the flag out."
      )
  root = str(library.root())
  gin_config._LOCATION_PREFIXES[:] = [*paths, _LIBRARY, "", root]
  _taken.clear()
  return [*paths, ".", root]


def shadowed() -> list[str]:
  """Files of the current directory in whose place the library's were read."""
  return [
    name
    for name in dict.fromkeys(_taken)
    if (own := pathlib.Path(name)).is_file() and not own.samefile(_ours(name))
  ]


def _ours(name: str) -> pathlib.Path:
  return library.root() / name


def _is_ours(path: str) -> bool:
  name = path.removeprefix(_LIBRARY + "/")
  top = name.split("/")[0]
  if name == path or top not in library.TOPS or ".." in name.split("/"):
    return False
  return _ours(name).is_file()


def _open_ours(path: str):
  name = path.removeprefix(_LIBRARY + "/")
  _taken.append(name)
  return _ours(name).open(encoding="utf-8")


def _is_remote_file(path: str) -> bool:
  # Behind the prefix of another place it is no remote path.
  return re.match(r"\w+://", path) is not None and at(path).is_file()


def _open_remote(path: str):
  return at(path).open()


def _is_in_package(path: str) -> bool:
  # gin's own reader falls over folders that are no packages, such as configs/demo.
  try:
    return resource_reader.system_path_file_exists(path)
  except (TypeError, AttributeError):
    return False


_GINS = resource_reader.system_path_reader
gin_config._FILE_READERS[:] = [
  *((read, is_) for read, is_ in gin_config._FILE_READERS if read is not _GINS),
  (_open_ours, _is_ours),
  (_open_remote, _is_remote_file),
  (_GINS, _is_in_package),
]

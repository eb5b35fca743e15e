"""Which files of a folder this library wrote, and so may replace or remove.

A card of our own format says so, or a manifest: names and digests of what was written.
Both come from whoever handed the folder on, so no name leads out of the folder, and a
file that is not what the manifest says is somebody's.
"""

import hashlib
import json
import os
import pathlib
import stat
from collections.abc import Callable, Collection, Mapping
from typing import Any

from prompt_tuning.core.files import is_remote

# What was written into a folder whose format has no card of ours.
MANIFEST = ".prompt_tuning.json"
_WRITER = "prompt_tuning"
# No card or manifest of ours comes near it.
MOST_JSON = 64 << 20

# folder -> names, relative to it, of the files there that may be replaced.
Owned = Callable[[Any], Collection[str]]


def listed(folder: Any) -> Collection[str]:
  """The files that `MANIFEST` names and that are still what was written."""
  same = unchanged(folder, folder / MANIFEST)
  # It is ours to write anew whatever became of the files that it names.
  return [*same, MANIFEST] if same or is_manifest(folder / MANIFEST) else ()


def listed_beside(folder: Any) -> Collection[str]:
  """The same with the manifest next to a folder whose format admits no other file."""
  return list(unchanged(folder, beside(folder)))


def beside(folder: Any) -> Any:
  """Where that manifest is."""
  return folder.parent / f".{folder.name}{MANIFEST}"


def stated(card: str, fields: Mapping[str, Any], names: Collection[str]) -> Owned:
  """Owned files of a format whose card says what it is.

  Args:
    card: name of its JSON file. fields: what that must say.
    names: files that go with it.
  """

  def owned(folder: Any) -> Collection[str]:
    found = read_json(folder / card)
    fits = all(found.get(key) == value for key, value in fields.items())
    return [card, *names] if found and fits else ()

  return owned


def manifest(folder: Any, before: Mapping[str, str] | None = None) -> str:
  """What `listed` reads, of all files of a folder.

  Args:
    before: name -> digest of files that still stand where these will.
  """
  files = {name: digest_of(folder / name) for name in names_of(folder)}
  said = {"writer": _WRITER, "files": files, **({"before": before} if before else {})}
  return json.dumps(said, indent=1) + "\n"


def is_manifest(path: Any) -> bool:
  """Whether a file says that this library wrote it."""
  return read_json(path).get("writer") == _WRITER


def unchanged(folder: Any, path: Any) -> dict[str, str]:
  """Name -> digest of files in a folder that are what the manifest at `path` says."""
  if not is_manifest(path):
    return {}
  fields, found = read_json(path), {}
  for key in ("before", "files"):
    files = fields.get(key)
    for name, digest in files.items() if isinstance(files, dict) else ():
      if not is_inside(name) or not is_own_file(folder, name):
        continue
      if digest == digest_of(folder / name):
        found[name] = digest
  return found


def digest_of(path: Any) -> str:
  """SHA-256 of a file, in hexadecimal."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def names_of(folder: pathlib.Path) -> list[str]:
  """Names of all files below a folder, relative to it."""
  return sorted(
    path.relative_to(folder).as_posix()
    for path in folder.rglob("*")
    if not path.is_dir()
  )


def is_file(path: Any) -> bool:
  """Whether a path is a regular file and no link."""
  if is_remote(path):
    return path.is_file()
  try:
    return stat.S_ISREG(os.lstat(path).st_mode)
  except (OSError, ValueError):
    return False


def is_own_file(folder: Any, name: str) -> bool:
  """Whether a name leads to a regular file of a folder through no link."""
  if not is_remote(folder):
    above = pathlib.PurePosixPath(name).parents
    if any((folder / one).is_symlink() for one in above if one.name):
      return False
  return is_file(folder / name)


def is_inside(name: Any) -> bool:
  """Whether a stated name stays in its folder."""
  if not isinstance(name, str) or not name or "\\" in name or "\0" in name:
    return False
  path = pathlib.PurePosixPath(name)
  return not path.is_absolute() and ".." not in path.parts


def read_json(path: Any) -> dict[str, Any]:
  """The object of a JSON file; empty for anything else."""
  try:
    if not is_file(path):
      return {}
    with path.open("rb") as file:
      found = json.loads(file.read(MOST_JSON).decode("utf-8"))
  except (OSError, ValueError, RecursionError):
    return {}
  return found if isinstance(found, dict) else {}

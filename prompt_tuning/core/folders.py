"""Folders whose files appear together or not at all, beside whatever else is there.

What is written goes aside first. A folder that is new takes its name in one rename. In
a folder that exists, the new files first become `.prompt_tuning.new`, in one rename
too, and from there each takes the place of the one before it. A process that is killed
between leaves a folder whose newest files are complete: `current` finds them, and the
next write ends the move. Nothing that was not written by this library is ever replaced
or removed: what is there counts as ours only where `owned` says so.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from prompt_tuning.core.files import ASIDE, at, is_remote, write_text

# Whole, but not yet in their places.
NEW = ".prompt_tuning.new"
# What was written into a folder whose format has no card of ours: names and digests.
MANIFEST = ".prompt_tuning.json"
_WRITER = "prompt_tuning"
# No card or manifest of ours comes near it.
MOST_JSON = 64 << 20

# folder -> names, relative to it, of the files there that may be replaced.
Owned = Callable[[Any], Collection[str]]


def listed(folder: Any) -> Collection[str]:
  """The files that `MANIFEST` names and that are still what was written."""
  same = _unchanged(folder, folder / MANIFEST)
  # It is ours to write anew whatever became of the files that it names.
  own = same or _json(folder / MANIFEST).get("writer") == _WRITER
  return [*same, MANIFEST] if own else ()


def listed_beside(folder: Any) -> Collection[str]:
  """The same with the manifest next to a folder whose format admits no other file."""
  return _unchanged(folder, _beside(folder))


def _beside(folder: Any) -> Any:
  return folder.parent / f".{folder.name}{MANIFEST}"


def _unchanged(folder: Any, manifest: Any) -> list[str]:
  fields = _json(manifest)
  files = fields.get("files") if fields.get("writer") == _WRITER else None
  if not isinstance(files, dict):
    return []
  return [
    name
    for name, digest in files.items()
    if _inside(name) and _is_file(folder / name) and digest_of(folder / name) == digest
  ]


def stated(card: str, fields: Mapping[str, Any], names: Collection[str]) -> Owned:
  """Owned files of a format whose card says what it is.

  Args:
    card: name of its JSON file. fields: what that must say.
    names: files that go with it.
  """

  def owned(folder: Any) -> Collection[str]:
    found = _json(folder / card)
    fits = all(found.get(key) == value for key, value in fields.items())
    return [card, *names] if found and fits else ()

  return owned


@contextlib.contextmanager
def whole_folder(
  folder: Any, owned: Owned = listed, expected: Collection[str] = ()
) -> Iterator[pathlib.Path]:
  """Gives a folder to write into, whose files stand in `folder` at the end.

  After an error nothing is left behind, and what stood there before still stands. A
  remote folder is filled from a local one at the end, small files, which describe the
  others, last.

  Args:
    folder: here or remote; made if it does not exist.
    owned: which files there are ours. With `listed` and `listed_beside` a manifest is
      written too.
    expected: names that will be written, so that a foreign file is refused at once.

  Raises:
    ValueError: if a file stands in the folder's place, or if a file that is not ours
      stands in the place of one that is to be written.
    PermissionError: if the place cannot be written, before anything is.
  """
  place = at(folder)
  if not is_remote(folder):
    place = pathlib.Path(os.path.abspath(place))
  _check_folder(place)
  _check(place, owned, expected)
  if is_remote(folder):
    with tempfile.TemporaryDirectory() as near:
      yield pathlib.Path(near)
      _finished(pathlib.Path(near), owned)
      _check(place, owned, _files(pathlib.Path(near)))
      _copy(pathlib.Path(near), place)
    return
  place.parent.mkdir(parents=True, exist_ok=True)
  there = place.is_dir()
  if there:
    _settle(place)
  aside = (place if there else place.parent) / ASIDE.format(secrets.token_hex(4))
  aside.mkdir()
  try:
    yield aside
    _finished(aside, owned)
    held = _manifest(aside) if owned is listed_beside else None
    _commit(aside, place, owned)
    if held is not None:
      write_text(_beside(place), held)
  except BaseException:
    shutil.rmtree(aside, ignore_errors=True)
    raise


def current(folder: Any, name: str) -> Any:
  """Where the newest whole file of a name is, see the head of this file."""
  waiting = folder / NEW
  if is_remote(folder) or waiting.is_symlink() or not _is_file(waiting / name):
    return folder / name
  return waiting / name


def digest_of(path: Any) -> str:
  """SHA-256 of a file, in hexadecimal."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _check_folder(place: Any) -> None:
  """Refuses a place where no folder can be."""
  above = [place, *place.parents] if not is_remote(place) else [place]
  for path in above:
    if path.exists() and not path.is_dir():
      raise ValueError(
        f"{str(place)!r} cannot be a folder: {str(path)!r} is a file. Name another "
        "folder; nothing was written."
      )
    if not is_remote(path) and path.is_symlink() and not path.exists():
      raise ValueError(f"{str(path)!r} is a link to nothing. Name another folder.")


def _check(place: Any, owned: Owned, names: Collection[str]) -> None:
  """Refuses names under which something stands that is not ours."""
  taken = [name for name in names if _stands(place, name)]
  if not taken:
    return
  ours = set(owned(place))
  foreign = sorted(set(taken) - ours)
  wrong = foreign or [name for name in taken if not _is_file(place / name)]
  if wrong:
    raise ValueError(
      f"{str(place)!r} holds {wrong[0]!r}, which was not written by this library (or "
      "was changed since), and would be replaced. Name another folder, or move that "
      "file away."
    )


def _stands(place: Any, name: str) -> bool:
  """Whether something has a name, or blocks the way to it."""
  if is_remote(place):
    return (place / name).exists()
  path = place
  for part in pathlib.PurePosixPath(name).parts:
    path = path / part
    if path.is_symlink():
      return True
    if not path.exists():
      return False
    if path.is_file() or path != place / name and not path.is_dir():
      return True
  return True


def _commit(aside: pathlib.Path, place: pathlib.Path, owned: Owned) -> None:
  names = _files(aside)
  if not place.exists():
    os.rename(aside, place)
    return
  _settle(place)
  _check(place, owned, names)
  stale = sorted(set(owned(place)) - set(names))
  os.rename(aside, place / NEW)
  _settle(place)
  for name in stale:
    if _is_file(place / name):
      (place / name).unlink()
      with contextlib.suppress(OSError):
        (place / name).parent.rmdir()  # where it is empty now


def _settle(place: pathlib.Path) -> None:
  """Moves the files of `NEW` to their places."""
  waiting = place / NEW
  if waiting.is_symlink() or not waiting.is_dir():
    return
  for name in sorted(_files(waiting), key=lambda name: name == MANIFEST):
    (place / name).parent.mkdir(parents=True, exist_ok=True)
    os.replace(waiting / name, place / name)
  shutil.rmtree(waiting)


def _finished(aside: pathlib.Path, owned: Owned) -> None:
  """Adds the manifest, and gives files the modes that the process's mask asks for."""
  if owned is listed:
    (aside / MANIFEST).write_text(_manifest(aside), encoding="utf-8")
  mode = _mode(aside)
  for name in _files(aside):
    (aside / name).chmod(mode)


def _manifest(folder: pathlib.Path) -> str:
  files = {name: digest_of(folder / name) for name in _files(folder)}
  return json.dumps({"writer": _WRITER, "files": files}, indent=1) + "\n"


def _mode(folder: pathlib.Path) -> int:
  """The mode of a new file; some libraries write theirs for the owner alone."""
  probe = folder / ASIDE.format("mode")
  probe.mkdir()
  found = stat.S_IMODE(probe.stat().st_mode)
  probe.rmdir()
  return found & 0o666


def _files(folder: pathlib.Path) -> list[str]:
  """Names of all files below a folder, relative to it."""
  return sorted(
    path.relative_to(folder).as_posix()
    for path in folder.rglob("*")
    if not path.is_dir()
  )


def _is_file(path: Any) -> bool:
  """Whether a path is a regular file and no link."""
  if is_remote(path):
    return path.is_file()
  try:
    return stat.S_ISREG(os.lstat(path).st_mode)
  except (OSError, ValueError):
    return False


def _inside(name: Any) -> bool:
  """Whether a stated name stays in its folder."""
  if not isinstance(name, str) or not name or "\\" in name or "\0" in name:
    return False
  path = pathlib.PurePosixPath(name)
  return not path.is_absolute() and ".." not in path.parts


def _json(path: Any) -> dict[str, Any]:
  """The object of a JSON file; empty for anything else."""
  try:
    if not _is_file(path):
      return {}
    with path.open("rb") as file:
      found = json.loads(file.read(MOST_JSON).decode("utf-8"))
  except (OSError, ValueError, RecursionError):
    return {}
  return found if isinstance(found, dict) else {}


def _copy(near: pathlib.Path, far: Any) -> None:
  for name in sorted(_files(near), key=lambda name: -(near / name).stat().st_size):
    path, place = near / name, far / name
    place.parent.mkdir(parents=True, exist_ok=True)
    with path.open("rb") as source, place.open("wb") as target:
      shutil.copyfileobj(source, target, 16 << 20)

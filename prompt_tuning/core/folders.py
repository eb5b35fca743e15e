"""Folders whose files appear together or not at all, beside whatever else is there.

What is written goes aside first. A folder that is new takes its name in one rename. In
a folder that exists, the new files first become `.prompt_tuning.new`, in one rename
too, and from there each takes the place of the one before it. A process that is killed
between leaves a folder whose newest files are complete: `current` finds them, and the
next write ends the move. Nothing that was not written by this library is ever replaced
or removed: what is there counts as ours only where `owned` says so.
"""

import contextlib
import json
import os
import pathlib
import secrets
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterator
from typing import Any

from prompt_tuning.core.files import (
  ASIDE,
  alone,
  at,
  check_replaceable,
  is_remote,
  write_text,
)
from prompt_tuning.core.owned import (
  MANIFEST,
  Owned,
  beside,
  is_file,
  is_manifest,
  is_own_file,
  manifest,
  names_of,
  read_json,
  unchanged,
)
from prompt_tuning.core.owned import listed as listed
from prompt_tuning.core.owned import listed_beside as listed_beside
from prompt_tuning.core.owned import stated as stated

# Whole, but not yet in their places; and there, what each of them replaces.
NEW = ".prompt_tuning.new"
_PLAN = ".prompt_tuning.plan"


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
    ValueError: if the folder cannot be written, if a file stands in its place, or if
      one that is not ours stands where one is to be written.
  """
  place = check(folder, owned, expected)
  if is_remote(folder):
    with tempfile.TemporaryDirectory() as near:
      yield pathlib.Path(near)
      _finished(pathlib.Path(near), owned)
      _send(pathlib.Path(near), place, owned)
    return
  made: list[pathlib.Path] = []
  above = place if place.is_dir() else place.parent
  aside = above / ASIDE.format(secrets.token_hex(4))
  try:
    try:
      _make(place.parent, made)
      aside.mkdir()
    except OSError as error:
      raise ValueError(
        f"{str(place)!r} cannot be written ({error.strerror}). Name another folder, or "
        "make that one writable."
      ) from error
    yield aside
    _finished(aside, owned)
    with alone(place.parent):
      _commit(aside, place, owned)
  except BaseException:
    shutil.rmtree(aside, ignore_errors=True)
    for path in reversed(made):
      with contextlib.suppress(OSError):
        path.rmdir()  # where it is empty still
    raise


def check(folder: Any, owned: Owned = listed, expected: Collection[str] = ()) -> Any:
  """The path of a folder that `whole_folder` can write; see there.

  For whoever works long before there is anything to write.
  """
  place = at(folder)
  if not is_remote(folder):
    place = pathlib.Path(os.path.abspath(place))
  _check_folder(place)
  if owned is listed_beside:
    check_replaceable(beside(place), is_manifest)
  _check(place, owned, expected)
  return place


def current(folder: Any, name: str) -> Any:
  """Where the newest whole file of a name is, see the head of this file."""
  waiting = folder / NEW
  if is_remote(folder) or waiting.is_symlink() or not is_file(waiting / name):
    return folder / name
  return waiting / name


def _check_folder(place: Any) -> None:
  """Refuses a place where no folder can be."""
  above = [place, *place.parents] if not is_remote(place) else [place]
  for path in above:
    there, is_folder = path.exists(), path.is_dir()
    if there and not is_folder:
      raise ValueError(
        f"{str(place)!r} cannot be a folder: {str(path)!r} is a file. Name another "
        "folder."
      )
    if not is_remote(path) and path.is_symlink() and not there:
      raise ValueError(f"{str(path)!r} is a link to nothing. Name another folder.")


def _check(place: Any, owned: Owned, names: Collection[str]) -> None:
  """Refuses names under which something stands that is not ours."""
  taken = [name for name in names if _stands(place, name)]
  if not taken or _waits(place):
    return  # what waits there was checked before it went there
  ours = set(owned(place))
  foreign = sorted(set(taken) - ours)
  wrong = foreign or [name for name in taken if not is_own_file(place, name)]
  if wrong:
    raise ValueError(
      f"{str(place)!r} holds {wrong[0]!r}, which was not written by this library (or "
      "was changed since), and would be replaced. Name another folder, or move that "
      "file away."
    )


def _waits(place: Any) -> bool:
  """Whether a process was killed while it moved its files to their places."""
  return not is_remote(place) and is_file(place / NEW / _PLAN)


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
  if owned is listed_beside:
    # Before the move, so that the files are known for ours however far that comes.
    before = unchanged(place, beside(place)) if place.is_dir() else {}
    said = manifest(aside, before)
  if not place.exists():
    if owned is listed_beside:
      write_text(beside(place), said)
    os.rename(aside, place)
    return
  _settle(place)
  names = names_of(aside)
  _check(place, owned, names)
  ours = [name for name in owned(place) if is_own_file(place, name)]
  if owned is listed_beside:
    write_text(beside(place), said)
  plan = {name: _identity(place / name) for name in ours}
  (aside / _PLAN).write_text(json.dumps({"files": names, "before": plan}))
  os.rename(aside, place / NEW)
  _settle(place)


def _settle(place: pathlib.Path) -> None:
  """Moves the files of `NEW` to their places, and removes those that went before.

  Raises:
    ValueError: if it is none of ours, or something else came in the way.
  """
  waiting = place / NEW
  if not os.path.lexists(waiting):
    return
  names = [] if waiting.is_symlink() or not waiting.is_dir() else names_of(waiting)
  plan = read_json(waiting / _PLAN)
  before, files = plan.get("before"), plan.get("files")
  if not isinstance(before, dict) or not isinstance(files, list):
    if waiting.is_dir() and not waiting.is_symlink() and not names:
      shutil.rmtree(waiting)
      return
    raise _in_the_way(waiting)
  names = sorted({*names} - {_PLAN}, key=lambda name: name == MANIFEST)
  for name in names:
    free = not _stands(place, name) or _identity(place / name) == before.get(name)
    if not free or not is_own_file(waiting, name):
      raise _in_the_way(place / name)
  for name in sorted(before.keys() - {*files}):
    # None of them is gone once the first of the new files is in its place.
    if is_own_file(place, name) and _identity(place / name) == before[name]:
      (place / name).unlink()
      _remove_empty((place / name).parent, place)
  for name in names:
    (place / name).parent.mkdir(parents=True, exist_ok=True)
    os.replace(waiting / name, place / name)
  shutil.rmtree(waiting)


def _in_the_way(path: pathlib.Path) -> ValueError:
  return ValueError(
    f"{str(path)!r} was not written by this library (or was changed since), and would "
    "be replaced. Name another folder, or move that away."
  )


def _identity(path: pathlib.Path) -> list[int]:
  """What tells a file from one that came in its place; no stranger can foresee it."""
  try:
    found = os.lstat(path)
  except OSError:
    return []
  return [found.st_ino, found.st_size, found.st_mtime_ns]


def _remove_empty(path: pathlib.Path, top: pathlib.Path) -> None:
  with contextlib.suppress(OSError):
    while path != top:
      path.rmdir()
      path = path.parent


def _make(path: pathlib.Path, made: list[pathlib.Path]) -> None:
  """Makes a folder; adds those that were not there, the outermost first."""
  for one in [*reversed(path.parents), path]:
    if not one.exists():
      one.mkdir(exist_ok=True)
      made.append(one)


def _finished(aside: pathlib.Path, owned: Owned) -> None:
  """Adds the manifest, and gives files the modes that the process's mask asks for."""
  if owned is listed:
    (aside / MANIFEST).write_text(manifest(aside), encoding="utf-8")
  mode = _mode(aside)
  for path in aside.rglob("*"):
    if not path.is_symlink():
      path.chmod(mode if path.is_dir() else mode & 0o666)


def _mode(folder: pathlib.Path) -> int:
  """The mode of a new folder; some libraries write theirs for the owner alone."""
  probe = folder / ASIDE.format("mode")
  probe.mkdir()
  found = stat.S_IMODE(probe.stat().st_mode)
  probe.rmdir()
  return found


def _send(near: pathlib.Path, far: Any, owned: Owned) -> None:
  """Copies a folder to a remote one, and removes there what it replaces."""
  names = names_of(near)
  _check(far, owned, names)
  stale = [name for name in owned(far) if name not in names]
  if owned is listed_beside:
    write_text(beside(far), manifest(near, unchanged(far, beside(far))))
  for name in sorted(names, key=lambda name: -(near / name).stat().st_size):
    path, place = near / name, far / name
    place.parent.mkdir(parents=True, exist_ok=True)
    with path.open("rb") as source, place.open("wb") as target:
      shutil.copyfileobj(source, target, 16 << 20)
  for name in stale:
    (far / name).unlink(missing_ok=True)

"""Files that appear whole or not at all, here or in an object store.

A remote path (gs://bucket/...) is an `epath.Path`, a local one a `pathlib.Path`. An
object store shows each file when it is whole, so nothing is written aside there. Whole
folders are written by `core.folders`.
"""

import contextlib
import errno
import fcntl
import os
import pathlib
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

# Names of what is being written. Nothing else may bear such a name: `sweep` removes it.
ASIDE = ".prompt_tuning.{}.aside"
_ASIDE = re.compile(r"\.prompt_tuning\..+\.aside")
# Bytes of a name.
_LONGEST = 255
# How long another process may take to move its files.
_WAIT_S = 10.0

# Whether the file at a path is one of ours, which may be replaced.
Ours = Callable[[Any], bool]


def is_remote(path: Any) -> bool:
  """Whether a path is no local one."""
  return "://" in str(path)


def at(path: Any) -> Any:
  """The `pathlib.Path` or, of a remote place, the `epath.Path`.

  `~` in front is the user's home: no shell has read what stands in quotes.

  Raises:
    ValueError: for what is no path, or a remote place of a kind that epath does not
      know.
  """
  if not is_remote(path):
    return pathlib.Path(_checked(path))
  # Slow to import, and rarely needed.
  from etils import epath

  try:
    return epath.Path(path)
  except KeyError as error:
    raise ValueError(
      f"{str(path)!r} is of a kind that is not known; gs://, s3:// and local paths are."
    ) from error


def _checked(path: Any) -> str:
  """A local path that the system takes, `~` made the user's home."""
  if not isinstance(path, str | os.PathLike):
    raise ValueError(f"A file or folder is named by a text or a path, got {path!r}.")
  found = os.path.expanduser(os.fspath(path))
  try:
    parts = os.fsencode(found).split(b"/")
  except UnicodeEncodeError as error:
    raise ValueError(f"{found!r} cannot be the name of a file: {error}.") from error
  if "\0" in found or max(map(len, parts)) > _LONGEST:
    why = "it holds a NUL" if "\0" in found else "it is too long"
    raise ValueError(f"{found!r} cannot be the name of a file: {why}.")
  return found


def sweep(folder: Any) -> None:
  """Removes what a killed process of this library was writing aside in a folder.

  Only for whoever owns the folder: another process may be writing there. Names that
  are not of the form `ASIDE`, hidden or not, are left alone.
  """
  if is_remote(folder) or not pathlib.Path(folder).is_dir():
    return
  for path in pathlib.Path(folder).iterdir():
    if not _ASIDE.fullmatch(path.name):
      continue
    if path.is_dir() and not path.is_symlink():
      shutil.rmtree(path, ignore_errors=True)
    else:
      path.unlink(missing_ok=True)


def write_text(path: Any, text: str, ours: Ours | None = None) -> None:
  """Writes a text file, in UTF-8, whole or not at all; see `write_bytes`."""
  write_bytes(path, text.encode("utf-8"), ours)


def write_bytes(path: Any, data: bytes, ours: Ours | None = None) -> None:
  """Writes a file aside, then renames it.

  Args:
    path: here or remote. data: all of it.
    ours: see `check_replaceable`.
  """
  path = at(path)
  check_replaceable(path, ours)
  path.parent.mkdir(parents=True, exist_ok=True)
  if is_remote(path):
    path.write_bytes(data)
    return
  aside = path.with_name(ASIDE.format(secrets.token_hex(8)))
  try:
    aside.write_bytes(data)
    os.replace(aside, path)
  except BaseException:
    aside.unlink(missing_ok=True)
    raise


def check_replaceable(path: Any, ours: Ours | None = None) -> None:
  """Refuses to replace what is no file, or no file of ours.

  Args:
    path: what is about to be written.
    ours: says whether the file at a path is ours to replace; None for a place that is
      ours by its name.

  Raises:
    ValueError: naming the path, before anything is written.
  """
  path = at(path)
  if is_remote(path):
    if ours is None or not path.exists() or ours(path):
      return
  else:
    try:
      mode = os.stat(path).st_mode
    except OSError:
      return
    if not stat.S_ISREG(mode):
      kind = "a folder" if stat.S_ISDIR(mode) else "no regular file"
      raise ValueError(f"{str(path)!r} is {kind}; name a file to write.")
    if ours is None or ours(path):
      return
  raise ValueError(
    f"{str(path)!r} exists, and nothing in it says that this library wrote it. Name "
    "another file, or move that one away."
  )


def check_writable(argument: str, path: Any, folder: Any) -> None:
  """Tries whether files can be made in a local folder; leaves nothing behind.

  Args:
    argument, path: what the caller named, for the message.
    folder: it need not exist.

  Raises:
    ValueError: if they cannot.
  """
  folder = pathlib.Path(os.path.abspath(folder))
  near = next(one for one in (folder, *folder.parents) if os.path.lexists(one))
  try:
    with tempfile.TemporaryFile(dir=near):
      pass
  except OSError as error:
    raise ValueError(
      f"`{argument}` is {str(path)!r}, which cannot be written: {error.strerror} "
      f"({str(near)!r})."
    ) from error


def begins(start: bytes) -> Ours:
  """A file is ours if it begins with these bytes."""
  return lambda path: head(path, len(start)) == start


def head(path: Any, size: int = 4096) -> bytes:
  """The first bytes of a file, with which `Ours` is often decided; none of no file."""
  try:
    with at(path).open("rb") as file:
      return file.read(size)
  except OSError:
    return b""


@contextlib.contextmanager
def alone(folder: pathlib.Path) -> Iterator[None]:
  """Keeps other threads and processes from moving files there meanwhile.

  Where the system knows no such lock, or somebody else keeps it, the move goes on.
  """
  try:
    file = os.open(folder, os.O_RDONLY)
  except OSError:
    yield
    return
  try:
    until = time.monotonic() + _WAIT_S
    while True:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        break
      except OSError as error:
        busy = error.errno in (errno.EWOULDBLOCK, errno.EACCES)
        if not busy or time.monotonic() > until:
          break
      time.sleep(0.01)
    yield
  finally:
    os.close(file)

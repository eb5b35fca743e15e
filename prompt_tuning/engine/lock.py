"""One job a folder: a lock that ends with its process, however that ends."""

import contextlib
import errno
import fcntl
import json
import logging
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import Any

from prompt_tuning.core import files
from prompt_tuning.engine import records

NAME = ".lock"
# What file systems say that know no locks.
_UNKNOWN = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def check(folder: Any) -> None:
  """Raises ValueError where a living job holds the folder; writes nothing."""
  if files.is_remote(folder):
    return
  path = folder / NAME
  try:
    file = os.open(path, os.O_RDWR)
  except OSError:
    return
  try:
    _take(file, path)
  finally:
    os.close(file)


@contextlib.contextmanager
def held(folder: Any) -> Iterator[None]:
  """Keeps other jobs out of a folder.

  The system gives the lock back when the process dies, so what a killed job leaves
  behind stops nobody. Remote places know no such locks: there, a warning must do.

  Raises:
    ValueError: if another job holds it, or if it cannot be written.
  """
  if files.is_remote(folder):
    logging.warning("%s cannot be locked: start no other job there.", folder)
    yield
    return
  path = folder / NAME
  try:
    folder.mkdir(parents=True, exist_ok=True)
    file = _opened(path)
  except OSError as error:
    raise ValueError(
      f"`MODEL_DIR` {str(folder)!r} cannot be written ({error.strerror}). Choose "
      "another folder, or make that one writable."
    ) from error
  with contextlib.ExitStack() as stack:
    # Removed while it is still held.
    stack.callback(os.close, file)
    stack.callback(path.unlink, missing_ok=True)
    owner = {"pid": os.getpid(), "host": socket.gethostname()}
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps(owner).encode(), 0)
    yield


def _opened(path: pathlib.Path) -> int:
  while True:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
      _take(file, path)
      # The job before may have removed the file just before it let go of it.
      if path.exists() and os.stat(path).st_ino == os.fstat(file).st_ino:
        return file
    except BaseException:
      os.close(file)
      raise
    os.close(file)


def _take(file: int, path: pathlib.Path) -> None:
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    raise ValueError(
      f"`MODEL_DIR` {str(path.parent)!r} is in use by {_owner(path)}. Wait until that "
      "job has ended, or choose another folder."
    ) from error
  except OSError as error:
    if error.errno not in _UNKNOWN:
      raise
    logging.warning("%s: this file system knows no locks (%s).", path, error.strerror)


def _owner(path: pathlib.Path) -> str:
  try:
    owner = records.read_object(path)
    return f"process {owner['pid']} on {owner['host']}"
  except (ValueError, KeyError):
    return "another process"


def foreign(folder: Any) -> bool:
  """Whether a file of the lock's name holds what no job writes there."""
  path = folder / NAME
  if not path.is_file():
    return path.exists()
  if not path.read_bytes():
    return False
  try:
    return set(records.read_object(path)) != {"pid", "host"}
  except records.DamagedError:
    return True

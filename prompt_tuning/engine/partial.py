"""A file of lines that are written as they are made, and go on after a kill.

Beside FILE stand, until it is whole, `.FILE.partial` with its lines so far, and
`.FILE.partial.json`, which says how many of them count, what they answer and with what.
The lines come first, then the count: what a kill leaves between the two is cut off by
whoever goes on. At the end the lines take FILE's name in one step.

A pipe or a device is written straight, and a remote file is sent at the end from a
local one: neither goes on.
"""

import dataclasses
import errno
import fcntl
import json
import os
import pathlib
import shutil
import stat
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from prompt_tuning.core import files

FORMAT = "prompt_tuning/partial/1"


@dataclasses.dataclass(frozen=True)
class Done:
  """What stands in a partial file.

  Attributes:
    lines, size: how many lines, in how many bytes.
    digest: of what they answer. belongs: what else must be the same to go on.
  """

  lines: int = 0
  size: int = 0
  digest: str = ""
  belongs: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Partial:
  """The lines of a file, while they are made. Use it in a `with`.

  Attributes:
    argument, path: of the file, as the caller named it.
    kept: where its lines stand until it is whole; None where a kill leaves nothing.
    done: what an earlier job has written; see `start`.
  """

  def __init__(self, argument: str, path: str, ours: files.Ours | None = None) -> None:
    self.argument, self.path, self._ours = argument, path, ours
    self.kept: pathlib.Path | None = None
    self.done = Done()
    self._state: pathlib.Path | None = None
    self._file: Any = None

  @property
  def screen(self) -> Any:
    """Where words about the file go: not between its lines."""
    return sys.stderr if _straight(self.path) else sys.stdout

  def kept_text(self) -> str:
    """What a job that ends early leaves, in words."""
    if self.kept is None or not self.done.lines:
      return "No answers are kept."
    return (
      f"{self.done.lines} answers are kept in {str(self.kept)!r}; the same command "
      "goes on from there."
    )

  def check(self, *sources: str) -> None:
    """Tries whether the file can be written; leaves nothing behind.

    Args:
      sources: files that are read meanwhile.

    Raises:
      ValueError: if it cannot be written, is a folder, is one of the sources, or is a
        file that is not ours.
    """
    argument, path = self.argument, self.path
    for source in sources:
      if _same(path, source):
        raise ValueError(
          f"`{argument}` is {path!r}, the same file as {source!r}, which is read. "
          "Choose another name."
        )
    if not _straight(path):
      self._check_ours()
    if files.is_remote(path) or _straight(path):
      return
    place = pathlib.Path(os.path.realpath(path))
    if place.is_dir():
      raise ValueError(
        f"`{argument}` is {path!r}, which is a folder. Name a file in it."
      )
    files.check_writable(argument, path, place.parent)

  def _check_ours(self) -> None:
    if files.is_remote(self.path) or not pathlib.Path(self.path).is_dir():
      files.check_replaceable(self.path, self._ours)

  def __enter__(self) -> "Partial":
    if files.is_remote(self.path):
      self._file = tempfile.TemporaryFile()
    elif _straight(self.path):
      self._file = open(self.path, "wb", buffering=0)
    else:
      place = pathlib.Path(os.path.realpath(self.path))
      place.parent.mkdir(parents=True, exist_ok=True)
      self.kept = place.with_name(f".{place.name}.partial")
      self._state = place.with_name(f".{place.name}.partial.json")
      self._file = self._opened()
    return self

  def _opened(self) -> Any:
    """The file of lines, for this job alone."""
    new = not self.kept.exists()
    descriptor = os.open(self.kept, os.O_RDWR | os.O_CREAT, 0o666)
    file = os.fdopen(descriptor, "r+b", buffering=0)
    try:
      self._take(file)
      self.done = self._read_state(os.fstat(descriptor).st_size)
    except BaseException:
      if new:
        self.kept.unlink(missing_ok=True)
      file.close()
      raise
    return file

  def _take(self, file: Any) -> None:
    """Keeps other jobs out; the system gives the lock back when the process ends."""
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
        return
      taken = isinstance(error, BlockingIOError)
      if not taken:
        raise
    else:
      # The job before may have given the file its name since it was opened here.
      own = os.fstat(file.fileno()).st_ino
      taken = not self.kept.exists() or os.stat(self.kept).st_ino != own
    if taken:
      raise ValueError(
        f"`{self.argument}` {self.path!r} is being written by another job. Wait for "
        "it, or choose another name."
      )

  def _read_state(self, size: int) -> Done:
    """What an earlier job says; refuses what this library did not write."""
    if not self._state.exists() and not size:
      return Done()
    try:
      data = json.loads(self._state.read_text(encoding="utf-8"))
      ours = data.pop("format") == FORMAT
      done = Done(**data)
      whole = ours and 0 <= done.lines <= done.size <= size
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
      ours = whole = False
    if not ours:
      raise ValueError(
        f"{str(self.kept)!r} or {self._state.name!r} is in the way of "
        f"`{self.argument}` {self.path!r}, and no job like this one wrote it. Move it."
      )
    return done if whole else Done()

  def start(self, lines: int, digest: str, belongs: Mapping[str, str]) -> None:
    """Goes on after so many lines of an earlier job, or from nothing."""
    size = self.done.size if lines else 0
    self.done = Done(lines, size, digest, dict(belongs))
    if self.kept is not None:
      # First what stays, then what goes: a kill between leaves what it had.
      self._write_state()
      os.ftruncate(self._file.fileno(), size)
      self._file.seek(size)

  def add(self, lines: Sequence[str], digest: str) -> None:
    """Writes lines, and that they count.

    Args:
      digest: of what all lines so far answer.

    Raises:
      OSError: naming the file, for a full disk or a reader that left.
    """
    data = "".join(f"{line}\n" for line in lines).encode("utf-8")
    view = memoryview(data)
    try:
      while view:
        view = view[self._file.write(view) :]
    except OSError as error:
      error.filename = str(self.kept or self.path)
      raise
    self.done = dataclasses.replace(
      self.done,
      lines=self.done.lines + len(lines),
      size=self.done.size + len(data),
      digest=digest,
    )
    if self.kept is not None:
      self._write_state()

  def _write_state(self) -> None:
    text = json.dumps({"format": FORMAT, **dataclasses.asdict(self.done)})
    files.write_text(self._state, text + "\n")

  def finish(self) -> None:
    """The lines take the file's name, unless a file of another's has it by now."""
    if files.is_remote(self.path) or self.kept is not None:
      self._check_ours()
    if files.is_remote(self.path):
      self._file.seek(0)
      place = files.at(self.path)
      place.parent.mkdir(parents=True, exist_ok=True)
      with place.open("wb") as target:
        shutil.copyfileobj(self._file, target, 16 << 20)
    elif self.kept is not None:
      os.replace(self.kept, os.path.realpath(self.path))
      self._state.unlink(missing_ok=True)

  def __exit__(self, *error: Any) -> None:
    if self.kept is not None and not self.done.lines:
      # Of nothing there is nothing to keep.
      self.kept.unlink(missing_ok=True)
      self._state.unlink(missing_ok=True)
    self._file.close()


def _straight(path: str) -> bool:
  """Whether a path is a pipe or a device."""
  try:
    mode = os.stat(path).st_mode
  except OSError:
    return False
  return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _same(one: str, other: str) -> bool:
  if files.is_remote(one) or files.is_remote(other):
    return one == other
  try:
    return os.path.samefile(one, other)
  except OSError:
    return os.path.realpath(one) == os.path.realpath(other)

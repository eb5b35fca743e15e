"""An end in one line, for verbs that have nothing to bring to an end first."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from prompt_tuning.engine import distributed

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class EndedError(BaseException):
  """The process was told to end.

  Attributes:
    code: exit status that goes with the signal.
  """

  def __init__(self, number: int) -> None:
    super().__init__(f"Told to end ({signal.Signals(number).name}).")
    self.code = 128 + number


@contextlib.contextmanager
def on_signals() -> Iterator[None]:
  """Raises EndedError where one of `SIGNALS` comes, whatever is being done.

  Only the main thread of a process can catch signals; JAX has its own way with SIGTERM
  among several processes, and what nohup has made deaf stays so.
  """

  def end(number: int, frame: Any) -> None:
    raise EndedError(number)

  numbers = [n for n in SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
  if threading.current_thread() is not threading.main_thread():
    numbers = []
  if distributed.several():
    numbers = [n for n in numbers if n != signal.SIGTERM]
  before = {number: signal.signal(number, end) for number in numbers}
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


@contextlib.contextmanager
def in_one_line(left: str = "Nothing was written.") -> Iterator[None]:
  """Ends the process with a line where one of `SIGNALS` comes.

  Args:
    left: what there is then, in words.

  Raises:
    SystemExit: with the code that goes with the signal.
  """
  try:
    with on_signals():
      yield
  except EndedError as error:
    say(f"{error} {left}")
    raise SystemExit(error.code) from error


@contextlib.contextmanager
def at_once() -> Iterator[None]:
  """Ends a program that was told to end without taking it down piece by piece.

  Devices may still compute what nobody waits for any more; Python would take away what
  they work on, and the process end in a segmentation fault.
  """
  try:
    yield
  except SystemExit as stop:
    if not isinstance(stop.__cause__, EndedError):
      raise
    for stream in (sys.stdout, sys.stderr):
      with contextlib.suppress(OSError, ValueError):
        stream.flush()
    os._exit(stop.__cause__.code)


def say(text: str, stream: Any = None) -> None:
  """Prints a line; that nobody reads any more is no reason to fail."""
  stream = stream or sys.stdout
  try:
    print(text, file=stream, flush=True)
  except BrokenPipeError:
    # Python flushes once more when it ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

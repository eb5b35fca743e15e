"""SIGTERM, as schedulers send it before they take a machine away."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

from prompt_tuning.engine import distributed

# 128 + SIGTERM, which launchers read as "ended from outside": start it again.
EXIT_CODE = 143


class StoppedError(Exception):
  """Training ended early, and its state was saved."""


@contextlib.contextmanager
def on_terminate() -> Iterator[Callable[[int], bool]]:
  """Gives a function that says, after a step, whether SIGTERM has come since.

  Several processes agree on the step, whichever of them it came to. Only the main
  thread of a process can catch signals; elsewhere it never says so.
  """
  if distributed.several():
    yield distributed.told
    return
  told = threading.Event()
  if threading.current_thread() is not threading.main_thread():
    yield lambda step: told.is_set()
    return
  before = signal.signal(signal.SIGTERM, lambda number, frame: told.set())
  try:
    yield lambda step: told.is_set()
  finally:
    signal.signal(signal.SIGTERM, before)

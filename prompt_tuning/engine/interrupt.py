"""Signals that ask a run to end: a scheduler's, Ctrl-C, a terminal that closes.

The first one lets the run finish its step and save. A second one ends the process at
once, also while a program is being compiled.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

from prompt_tuning.engine import distributed

# 128 + the signal, as shells and launchers read it.
CODES = {
  number: 128 + number for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
}
NOTHING = "Told to end before training began; nothing was written."
# Seconds within which a signal counts once: `timeout`, for one, sends it to the process
# and then to its group.
ONCE = 0.25


class StoppedError(Exception):
  """Training ended early, and its state was saved."""


class UnfinishedError(Exception):
  """An evaluation was left, because the run was told to end."""


class Told:
  """Says, after a step or a batch of an evaluation, whether the run was told to end.

  Several processes agree on the moment, whichever of them the signal came to: all of
  them must ask equally often.

  Attributes:
    code: exit status that goes with the signal.
  """

  def __init__(self) -> None:
    self.code = CODES[signal.SIGTERM]
    self._told = False
    self._heard: float | None = None
    self._asked = 0
    self._agreed = False

  def __call__(self, step: int) -> bool:
    if not distributed.several():
      return self._told
    self._asked += 1
    self._agreed = self._agreed or distributed.told(self._asked)
    return self._agreed

  def tell(self, number: int) -> None:
    """A signal came to this process: end soon."""
    if self._told:
      return
    self._told, self.code = True, CODES[signal.Signals(number)]
    if distributed.several() and number != signal.SIGTERM:
      # JAX tells the other processes of this one alone.
      os.kill(os.getpid(), signal.SIGTERM)

  def hear(self, number: int) -> None:
    """The same of a thread that is never busy: the second time, end at once."""
    if number not in CODES:
      return
    now = time.monotonic()
    if self._heard is None:
      self._heard = now
      self.tell(number)
    elif now - self._heard > ONCE:
      os.write(2, b"Told to end twice: ended at once, without another save.\n")
      os._exit(CODES[signal.Signals(number)])


@contextlib.contextmanager
def before_training(said: str = NOTHING) -> Iterator[None]:
  """Ctrl-C before there is anything to save ends in a line, not in a traceback."""
  try:
    yield
  except KeyboardInterrupt:
    print(said, file=sys.stderr)
    raise SystemExit(CODES[signal.SIGINT]) from None


@contextlib.contextmanager
def on_signals() -> Iterator[Told]:
  """Catches the signals while it is entered.

  Only the main thread of a process can; elsewhere nobody is ever told. Among several
  processes SIGTERM is JAX's own to catch.
  """
  told = Told()
  if threading.current_thread() is not threading.main_thread():
    yield told
    return
  ours = [n for n in CODES if n != signal.SIGTERM or not distributed.several()]
  # What nohup has made deaf stays so.
  ours = [n for n in ours if signal.getsignal(n) is not signal.SIG_IGN]
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  # Python runs handlers between two lines of its own, but writes here at once.
  woken = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  before = {n: signal.signal(n, lambda number, _: told.tell(number)) for n in ours}
  listener = threading.Thread(target=_listen, args=(reader, told), daemon=True)
  listener.start()
  try:
    yield told
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
    signal.set_wakeup_fd(woken)
    os.close(writer)
    listener.join()
    os.close(reader)


def _listen(reader: int, told: Told) -> None:
  while data := os.read(reader, 1):
    told.hear(data[0])

"""Ctrl-C while a program still starts: a line instead of a traceback.

Imported before anything slow, so it imports nothing that is.
"""

import os
import signal

# 128 + SIGINT, see `engine.interrupt`.
EXIT_CODE = 130


def catch() -> None:
  """Ends this process at once on Ctrl-C; `engine.interrupt` takes over from it."""
  if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, _end)


def _end(number: int, frame: object) -> None:
  os.write(2, b"Told to end before training began or after it ended.\n")
  os._exit(EXIT_CODE)

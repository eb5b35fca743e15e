"""Ctrl-C while a program still starts: a line instead of a traceback.

Imported before anything slow, so it imports nothing that is.
"""

import os
import signal

# 128 + SIGINT, see `engine.interrupt`.
EXIT_CODE = 130


def catch() -> None:
  """Ends this process at once on Ctrl-C.

  `engine.interrupt` and `engine.ended` take over where there is something to bring to
  an end.
  """
  if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, _end)


def _end(number: int, frame: object) -> None:
  os.write(2, b"Told to end before the work began or after it ended.\n")
  os._exit(EXIT_CODE)

"""What a program does first: large pages, streams that are open, Ctrl-C as a line.

Imported before anything slow, so it imports nothing that is.
"""

import os
import signal
import sys

from prompt_tuning.engine import huge_pages

# 128 + SIGINT, see `engine.interrupt`.
EXIT_CODE = 130


def begin(program: str | None = None) -> None:
  """Makes a process ready to import what is slow.

  Args:
    program: that asks for large pages, see `huge_pages.ask`; None for one that needs
      none.
  """
  # TensorFlow tells of its build whenever it is imported; errors are raised anyhow.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  open_streams()
  if program is not None:
    huge_pages.ask(program)
  catch()


def open_streams() -> None:
  """Opens to nowhere what was closed of the process's input, output and errors.

  The next files to be opened would get their numbers, and be written into by whatever
  speaks to a screen.
  """
  for number, name in enumerate(("stdin", "stdout", "stderr")):
    try:
      os.fstat(number)
    except OSError:
      # The lowest number that is free.
      os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if getattr(sys, name) is None:
      mode = "r" if name == "stdin" else "w"
      setattr(sys, name, open(number, mode, closefd=False))


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

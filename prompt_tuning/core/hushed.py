"""Imports that speak to the screen before anybody could ask them not to."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def errors() -> Iterator[None]:
  """Keeps what is written to the process's standard error meanwhile, from C++ too.

  It is dropped, unless what is done meanwhile raises: then it is written after all.
  """
  try:
    kept = os.dup(2)
  except OSError:  # closed
    yield
    return
  with tempfile.TemporaryFile() as aside:
    if sys.stderr is not None:
      sys.stderr.flush()
    os.dup2(aside.fileno(), 2)
    try:
      yield
    except BaseException:
      os.dup2(kept, 2)
      aside.seek(0)
      os.write(2, aside.read())
      raise
    finally:
      os.dup2(kept, 2)
      os.close(kept)

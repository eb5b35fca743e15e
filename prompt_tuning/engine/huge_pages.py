"""A program that starts itself again so that its large arrays lie in large pages.

A training step on a CPU writes most of a gigabyte of arrays, which the system hands out
afresh each time; in pages of four kilobytes, that takes a sixth of the step
(`benchmarks/train_step.py` with GLIBC_TUNABLES=glibc.malloc.hugetlb=0 shows it). glibc
2.35 and later ask Linux for large pages where GLIBC_TUNABLES says so, and read it once,
when a process starts. So a program of this library sets it and replaces itself, with
the same process id, before anything slow is imported.
"""

import os
import pathlib
import sys
from collections.abc import Sequence

VARIABLE = "GLIBC_TUNABLES"
NAME = "glibc.malloc.hugetlb"
# What Linux does with programs that ask: "always", "[madvise]" or "never".
_POLICY = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def ask(program: str) -> None:
  """Starts the process again with large pages, where that is of use.

  It is not where the process was not started as `program` (a test or a notebook may run
  the same code), where a debugger follows it, where whoever started it has set the
  tunable either way, or where Linux or glibc would not listen.

  Args:
    program: a module that runs by `python -m`, or the path of a script.
  """
  if sys.gettrace() is not None or not started_as(program, sys.orig_argv):
    return
  setting = os.environ.get(VARIABLE, "")
  if NAME in setting or not _heard():
    return
  os.environ[VARIABLE] = f"{setting}:{NAME}=1" if setting else f"{NAME}=1"
  sys.stdout.flush()
  sys.stderr.flush()
  os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def asked() -> bool:
  """Whether this process has large pages by its tunables."""
  return f"{NAME}=1" in os.environ.get(VARIABLE, "")


def started_as(program: str, command: Sequence[str]) -> bool:
  """Whether a command line of Python runs a module or a script."""
  if program.endswith(".py"):
    path = os.path.realpath(program)
    return any(os.path.realpath(part) == path for part in command[1:])
  return ("-m", program) in zip(command, command[1:], strict=False)


def _heard() -> bool:
  try:
    library, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    policy = _POLICY.read_text()
  except (ValueError, OSError, AttributeError):  # another system or C library
    return False
  numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
  return library == "glibc" and numbers >= (2, 35) and "[madvise]" in policy

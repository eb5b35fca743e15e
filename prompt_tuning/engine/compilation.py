"""How a step is compiled, and the folder where compiled programs are kept.

They are kept from run to run in the user's cache. JAX does the keeping. By itself it
leaves out programs that compile in less than a second; a start has forty of those,
which take seconds together, so they are kept too. Whoever sets
JAX_COMPILATION_CACHE_DIR chooses the folder, and JAX_ENABLE_COMPILATION_CACHE=false
switches it off.

JAX can bound the folder by itself, but then one job that is killed between the two
files of an entry, or one without filelock, ends all further keeping for everybody. So
it is bounded here, where a job starts, and an entry that cannot be read goes.
"""

import contextlib
import functools
import glob
import logging
import os
import pathlib
import platform
import re
import warnings
from typing import Any

import jax

# Of the folder when a job starts; what was not used for longest goes.
MOST_BYTES = 4 * 2**30
# What JAX warns of, once a program: whether it read or wrote, which program, and why.
_TROUBLE = re.compile(
  r"Error (reading|writing) persistent compilation cache entry for '(.+?)': (.*)", re.S
)

# Kinds of products that XLA for CPUs leaves to YNNPACK: none, so that Eigen does them.
_YNNPACK = "xla_cpu_experimental_ynn_fusion_type"
# Positions of a batch from which on Eigen is the faster: it copies a matrix into an
# order of its own for every product, which a few rows do not repay.
_POSITIONS = 1024


def options(target: str, positions: int) -> dict[str, str]:
  """What a training step asks of XLA beyond XLA's own choices.

  On x86, XLA leaves matrix products to YNNPACK, which takes a quarter longer than Eigen
  where many positions meet a matrix, and less where few do (`benchmarks/products.py`).
  An XLA that does not know the option is not asked, and whoever names it in XLA_FLAGS
  decides.

  Args:
    target: platform that the step is for: "cpu", "gpu", "tpu".
    positions: of the encoder that a device works on at once, over all rows.
  """
  x86 = platform.machine().lower() in ("x86_64", "amd64")
  if target != "cpu" or not x86 or positions < _POSITIONS:
    return {}
  if _YNNPACK in os.environ.get("XLA_FLAGS", "") or not _known(_YNNPACK, ""):
    return {}
  return {_YNNPACK: ""}


@functools.cache
def _known(name: str, value: str) -> bool:
  """Whether XLA takes an option; it refuses a program that asks for an unknown one."""
  try:
    jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
  except jax.errors.JaxRuntimeError:
    return False
  return True


def folder() -> pathlib.Path:
  """Where programs are kept unless JAX is told otherwise."""
  base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  return pathlib.Path(base) / "prompt-tuning" / "xla"


def keep() -> None:
  """Switches the cache on, unless it is configured or cannot be written."""
  if not jax.config.jax_enable_compilation_cache:
    return
  if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  if not isinstance(warnings.showwarning, _Trouble):
    warnings.showwarning = _Trouble(warnings.showwarning)
  if jax.config.jax_compilation_cache_dir is not None:
    return
  try:
    where = folder()
    where.mkdir(parents=True, exist_ok=True)
  except (OSError, RuntimeError):  # no home, or a read-only one
    return
  if not os.access(where, os.W_OK):
    return
  jax.config.update("jax_compilation_cache_dir", str(where))
  jax.config.update("jax_compilation_cache_max_size", -1)
  bound(where, MOST_BYTES)


def bound(where: pathlib.Path, most: int) -> None:
  """Removes the programs that were not used for longest, beyond so many bytes.

  Jobs that run meanwhile compile anew what they miss.
  """
  found = []
  with contextlib.suppress(OSError):
    for entry in os.scandir(where):
      if entry.name.endswith(("-cache", "-atime")):
        stat = entry.stat(follow_symlinks=False)
        found.append((max(stat.st_atime, stat.st_mtime), stat.st_size, entry.path))
  size = sum(one[1] for one in found)
  for _, bytes_, path in sorted(found):
    if size <= most:
      return
    with contextlib.suppress(OSError):
      os.unlink(path)
    size -= bytes_


class _Trouble:
  """Shows warnings; of JAX's about its cache, which are no harm, one at the most.

  An entry that is cut off (its writer was killed, or the disk was full) would be
  warned of in every run. It goes, and is written anew.
  """

  def __init__(self, show: Any) -> None:
    self._show = show
    self._told = False

  def __call__(self, message: Any, *args: Any, **kwargs: Any) -> None:
    found = _TROUBLE.fullmatch(str(message))
    if found is None:
      self._show(message, *args, **kwargs)
      return
    what, name, why = found.groups()
    where = jax.config.jax_compilation_cache_dir
    if where == str(folder()):
      for path in folder().glob(f"{glob.escape(name)}-*-cache"):
        with contextlib.suppress(OSError):
          path.unlink()
      if what == "reading":
        return
    if not self._told:
      self._told = True
      logging.warning(
        "Compiled programs cannot be kept in %s (%s); this run compiles its own.",
        where,
        " ".join(why.split()),
      )

"""Compiled programs are kept from run to run, in a folder of the user's cache.

JAX does the keeping. By itself it leaves out programs that compile in less than a
second; a start has forty of those, which take seconds together, so they are kept too.
Whoever sets JAX_COMPILATION_CACHE_DIR chooses the folder, and
JAX_ENABLE_COMPILATION_CACHE=false switches it off.
"""

import importlib.util
import os
import pathlib

import jax

# Where eviction is possible (JAX needs filelock for it); else the folder grows.
MOST_BYTES = 4 * 2**30


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
  if importlib.util.find_spec("filelock"):
    jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)

"""Compiled programs are kept from run to run, in a folder of the user's cache.

JAX does the keeping; programs that compile in less than a second are not worth it to
JAX. Whoever sets JAX_COMPILATION_CACHE_DIR chooses the folder, and
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
  if jax.config.jax_compilation_cache_dir is not None:
    return
  if not jax.config.jax_enable_compilation_cache:
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

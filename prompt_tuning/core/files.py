"""Files that appear whole or not at all."""

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def whole_folder(folder: str | pathlib.Path) -> Iterator[pathlib.Path]:
  """Gives a folder to write into, which takes the place of `folder` at the end.

  After an error nothing is left behind, and what stood there before still stands.

  Raises:
    PermissionError: if the place cannot be written, before anything is.
  """
  folder = pathlib.Path(folder).absolute()
  folder.parent.mkdir(parents=True, exist_ok=True)
  aside = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
  try:
    yield aside
    aside.chmod(0o755)
    old = aside.with_name(aside.name + ".old")
    if folder.exists():
      os.replace(folder, old)
    try:
      os.replace(aside, folder)
    except OSError:
      if old.exists():
        os.replace(old, folder)
      raise
    shutil.rmtree(old, ignore_errors=True)
  except BaseException:
    shutil.rmtree(aside, ignore_errors=True)
    raise


def sweep(folder: str | pathlib.Path) -> None:
  """Removes what a killed process was writing aside in a folder.

  Only for whoever owns the folder: another process may be writing there.
  """
  for path in pathlib.Path(folder).glob(".*"):
    if path.is_dir() and (path.suffix == ".old" or path.name.count(".") == 2):
      shutil.rmtree(path, ignore_errors=True)
    elif path.name.endswith(".tmp") or ".tmp." in path.name:
      path.unlink(missing_ok=True)


def write_text(path: str | pathlib.Path, text: str) -> None:
  """Writes a text file aside, then renames it."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)
  except BaseException:
    aside.unlink(missing_ok=True)
    raise

"""The gin files that come with the library: where they are, and what they are called.

Knows nothing of gin, so that whoever only asks for names need not import it.
"""

import difflib
import functools
import pathlib
from collections.abc import Sequence

from prompt_tuning.engine.explain import ConfigError

PACKAGE = pathlib.Path(__file__).resolve().parent.parent
# Folders whose names belong to the library.
TOPS = ("gin", "configs")


def root() -> pathlib.Path:
  """The folder that holds the library's `gin/` and `configs/`."""
  for place in (PACKAGE.parent, PACKAGE / "assets"):
    if (place / "gin" / "methods").is_dir():
      return place
  raise ConfigError("The folder `gin/` of prompt_tuning is missing; reinstall it.")


def gin_folder() -> pathlib.Path:
  """The folder `gin/` that comes with the library."""
  return root() / "gin"


def methods() -> list[str]:
  """Names of the methods that come with the library."""
  return sorted(path.stem for path in (gin_folder() / "methods").glob("*.gin"))


def inits() -> list[str]:
  """Names of the initialisations that come with the library."""
  return sorted(path.stem for path in (gin_folder() / "inits").glob("*.gin"))


@functools.cache
def texts() -> dict[str, str]:
  """Name -> text of every gin file of the library, such as "gin/train.gin"."""
  return {
    path.relative_to(root()).as_posix(): path.read_text(encoding="utf-8")
    for top in TOPS
    for path in sorted((root() / top).glob("**/*.gin"))
  }


def brings(method: str, part: str) -> bool:
  """Whether a method's file includes some file of a folder such as "gin/heads/"."""
  text = texts().get(f"gin/methods/{method}.gin", "")
  return f'include "{part}' in text


def near(name: str, known: Sequence[str]) -> str | None:
  """The known name that is nearest to another one, if any is near."""
  found = difflib.get_close_matches(name, known, 1, 0.5)
  return found[0] if found else None

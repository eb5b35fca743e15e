"""An encoder of the BERT family that this library saved."""

from typing import Any

from prompt_tuning.backbones.bert import files
from prompt_tuning.backbones.bert.backbone import Bert
from prompt_tuning.backbones.bert.config import BertConfig
from prompt_tuning.core.folders import current
from prompt_tuning.interop import places, tensor_files, untrusted
from prompt_tuning.interop.lazy import UnreadableError
from prompt_tuning.interop.source import Source


def is_own(folder: Any) -> bool:
  """Whether a folder holds a config.json that says this library saved it."""
  try:
    fields = untrusted.read_object(current(folder, "config.json"))
  except UnreadableError:
    return False
  return fields.get("format") == files.FORMAT


def open_own(folder: Any) -> Source:
  """Reads the configuration and the names; no weights.

  Raises:
    UnreadableError: if the files do not fit each other.
  """
  path = current(folder, "config.json")
  fields = untrusted.read_object(path)
  fields.pop("format", None)
  try:
    config = BertConfig(**fields)
  except (TypeError, ValueError) as error:
    raise UnreadableError(f"{str(path)!r}: {error}") from error
  arrays = tensor_files.tensors(current(folder, files.WEIGHTS))
  vocabulary = places.vocabulary(folder, config.vocab_size)
  return Source(folder, config, arrays, vocabulary=vocabulary, family=Bert)

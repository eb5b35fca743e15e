"""This library's own folder of a decoder: config.json, model.safetensors, vocabulary.

See `backbones.common.stored`.
"""

import pathlib
from typing import Any

from prompt_tuning.backbones.common import stored
from prompt_tuning.backbones.common.stored import WEIGHTS, digest, fingerprint
from prompt_tuning.backbones.decoder.backbone import Decoder
from prompt_tuning.core.folders import stated

__all__ = ["FORMAT", "OWNED", "WEIGHTS", "digest", "fingerprint", "save"]
FORMAT = "prompt_tuning/decoder"
# A vocabulary's file, and what says beside it which tokens are marks.
VOCABULARIES = ("tokenizer.json", "spiece.model")
MARKS = ("tokenizer_config.json", "special_tokens_map.json")
# What stands in a folder that this library saved, and may be replaced.
OWNED = stated("config.json", {"format": FORMAT}, [WEIGHTS, *VOCABULARIES, *MARKS])


def save(
  folder: str | pathlib.Path,
  backbone: Decoder,
  params: Any,
  vocabulary: str | pathlib.Path | None = None,
  dtype: Any = None,
) -> None:
  """Writes a backbone (unrolled layers), whole or not at all.

  Args:
    folder: made if it does not exist; what else it holds stays, and a backbone that
      was saved there before is replaced.
    backbone: the architecture. params: its weights.
    vocabulary: tokenizer.json or SentencePiece file to put beside the weights, the
      former with what lies beside it and says which tokens are marks.
    dtype: cast the weights (bfloat16 halves the file and rounds to 8 bits).

  Raises:
    ValueError: for weights held as int8, or files in the way that are not ours.
  """
  beside = {} if vocabulary is None else _vocabulary(pathlib.Path(vocabulary))
  fields = {"format": FORMAT, **backbone.architecture}
  stored.save(folder, OWNED, fields, params, beside, dtype)


def _vocabulary(file: pathlib.Path) -> dict[str, pathlib.Path]:
  if file.suffix != ".json":
    return {VOCABULARIES[1]: file}
  more = {name: file.parent / name for name in MARKS}
  found = {name: path for name, path in more.items() if path.is_file()}
  return {VOCABULARIES[0]: file, **found}

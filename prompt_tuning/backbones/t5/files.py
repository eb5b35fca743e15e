"""This library's own folder of a T5: config.json, model.safetensors, spiece.model.

See `backbones.common.stored`. `interop.own` reads these folders, as lazily as those of
other libraries.
"""

import pathlib
from typing import Any

from prompt_tuning.backbones.common import stored
from prompt_tuning.backbones.common.stored import WEIGHTS, digest, fingerprint
from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.core.folders import stated

__all__ = ["FORMAT", "OWNED", "WEIGHTS", "digest", "fingerprint", "save"]
FORMAT = "prompt_tuning/t5"
VOCABULARY = "spiece.model"
# What stands in a folder that this library saved, and may be replaced.
OWNED = stated("config.json", {"format": FORMAT}, [WEIGHTS, VOCABULARY])


def save(
  folder: str | pathlib.Path,
  backbone: T5,
  params: Any,
  vocabulary: str | pathlib.Path | None = None,
  dtype: Any = None,
) -> None:
  """Writes a backbone (unrolled layers), whole or not at all.

  Args:
    folder: made if it does not exist; what else it holds stays, and a backbone that
      was saved there before is replaced.
    backbone: the architecture. params: its weights.
    vocabulary: SentencePiece file to put beside the weights.
    dtype: cast the weights (bfloat16 halves the file and rounds to 8 bits).

  Raises:
    ValueError: for weights held as int8, or files in the way that are not ours.
  """
  beside = {} if vocabulary is None else {VOCABULARY: vocabulary}
  fields = {"format": FORMAT, **backbone.architecture}
  stored.save(folder, OWNED, fields, params, beside, dtype)

"""This library's own folder of a BERT, see `backbones.common.stored`.

A tokeniser's file lies beside the weights, and what says more of it.
"""

import dataclasses
import pathlib
from typing import Any

from prompt_tuning.backbones.bert.backbone import Bert
from prompt_tuning.backbones.common import stored
from prompt_tuning.backbones.common.stored import WEIGHTS, digest, fingerprint
from prompt_tuning.core.folders import stated

__all__ = ["FORMAT", "OWNED", "WEIGHTS", "bound", "digest", "fingerprint", "save"]
FORMAT = "prompt_tuning/bert"
TOKENISERS = ("tokenizer.json", "vocab.txt")
BESIDE = ("tokenizer_config.json", "special_tokens_map.json")
OWNED = stated("config.json", {"format": FORMAT}, [WEIGHTS, *TOKENISERS, *BESIDE])


def save(
  folder: str | pathlib.Path,
  backbone: Bert,
  params: Any,
  vocabulary: str | pathlib.Path | None = None,
  dtype: Any = None,
) -> None:
  """Writes a backbone (unrolled layers), whole or not at all.

  Args:
    folder: made if it does not exist; what else it holds stays, and a backbone that
      was saved there before is replaced.
    backbone: the architecture. params: its weights.
    vocabulary: tokenizer.json or vocab.txt to put beside the weights.
    dtype: cast the weights (bfloat16 halves the file and rounds to 8 bits).

  Raises:
    ValueError: for weights held as int8, or files in the way that are not ours.
  """
  fields = {"format": FORMAT, **backbone.architecture}
  beside = {} if vocabulary is None else _beside(pathlib.Path(vocabulary))
  stored.save(folder, OWNED, fields, params, beside, dtype)


def _beside(vocabulary: pathlib.Path) -> dict[str, pathlib.Path]:
  name = vocabulary.name if vocabulary.name in TOKENISERS else TOKENISERS[0]
  more = [vocabulary.parent / one for one in BESIDE]
  return {name: vocabulary, **{one.name: one for one in more if one.is_file()}}


def bound(found: Bert, expected: Bert | None) -> Bert | None:
  """What is expected, with the parts that the files hold.

  A pooler or a head of masked words that only the files hold, or that nobody bound, is
  no difference: what is there is read.
  """
  if expected is None:
    return None
  held = {"pooler": found.config.pooler, "mlm_head": found.config.mlm_head}
  return Bert(dataclasses.replace(expected.config, **held))

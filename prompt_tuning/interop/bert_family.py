"""Files of BERT-like encoders: folders of ours and of Hugging Face."""

from collections.abc import Mapping
from typing import Any

import jax

from prompt_tuning.backbones.bert import files
from prompt_tuning.backbones.bert.backbone import Bert
from prompt_tuning.backbones.bert.config import KINDS
from prompt_tuning.backbones.common import int8
from prompt_tuning.backbones.common.stacking import unrolled
from prompt_tuning.interop import bert_hugging, bert_stored
from prompt_tuning.interop import source as sources
from prompt_tuning.interop.source import Source

NAME = Bert.family
LOOKED_FOR = (
  "of a BERT, RoBERTa or XLM-R, a folder that this library saved, or a Hugging Face "
  "folder (model_type bert, roberta or xlm-roberta)"
)
MODEL_TYPES = KINDS
FORMAT = files.FORMAT


def open_source(place: Any, expected: Bert | None = None) -> Source | None:
  """Recognises an encoder; no weights are read. None for what is none.

  Args:
    place: `pathlib.Path` or `epath.Path`. expected: bound architecture; files say all.

  Raises:
    ValueError: if it is one, and damaged.
  """
  if bert_hugging.recognises(place):
    return bert_hugging.open_source(place)
  return bert_stored.open_own(place) if bert_stored.is_own(place) else None


def load(
  opened: Source, expected: Bert | None, shardings: Any, dtype: Any
) -> tuple[Bert, Any]:
  """See `interop.source.load`."""
  wanted = files.bound(opened.backbone, expected)
  return sources.load(opened, wanted, shardings, dtype)


def narrowed(backbone: Bert, params: Any) -> tuple[Any, Any]:
  """Drawn weights as int8, and the arrays that they were."""
  del backbone
  return int8.tree(params), unrolled(jax.device_get(params))


def fingerprint(params: Any) -> str:
  """See `backbones.common.stored.fingerprint`."""
  return files.fingerprint(params)


def digest(arrays: Mapping[str, Any]) -> str:
  """See `backbones.common.stored.digest`."""
  return files.digest(arrays)

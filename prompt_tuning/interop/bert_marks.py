"""Which ids open, close and pad a text of an encoder, and stand for a masked word.

A tokeniser beside the weights says; where there is none, config.json does, or what
every BERT or RoBERTa has.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from prompt_tuning.backbones.bert.config import BertConfig
from prompt_tuning.data import tokenizer_files, vocabularies
from prompt_tuning.interop.lazy import UnreadableError

# (opens, closes, masks) where no file says.
USUAL = {
  "bert": (101, 102, 103),
  "roberta": (0, 2, 50264),
  "xlm-roberta": (0, 2, 250001),
}
MASKS = ("[MASK]", "<mask>")


def stated(fields: Mapping[str, Any], kind: str, rows: int, pad: int) -> dict[str, int]:
  """Fields of a `BertConfig`, from config.json alone.

  Args:
    fields: of it. kind: its model_type. rows: of the token table. pad: its id.
  """
  first, last, mask = USUAL[kind]
  if fields.get("bos_token_id") is not None and fields.get("eos_token_id") is not None:
    first, last = fields["bos_token_id"], fields["eos_token_id"]
  if max(first, last) >= rows:
    # Of so small a table the tokeniser must say them, see `marked`.
    first, last = rows - 2, rows - 1
  mask = min(mask, rows - 1)
  return {"pad_id": pad, "first_id": first, "last_id": last, "mask_id": mask}


def marked(config: BertConfig, vocabulary: str | None) -> BertConfig:
  """The architecture with the ids that the tokeniser in the folder uses.

  Raises:
    UnreadableError: if it cannot be read, or opens or closes a text with nothing.
  """
  if vocabulary is None or not tokenizer_files.is_one(vocabulary):
    return config
  try:
    found = vocabularies.from_file(vocabulary)
    marks = {"first_id": found.bos_id, "last_id": found.eos_id, "pad_id": found.pad_id}
    masks = [found.tokens.ids[name] for name in MASKS if name in found.tokens.ids]
    for name, value in marks.items():
      if value is None:
        raise UnreadableError(
          f"{vocabulary!r} does not say which token is `{name}`, which an encoder's "
          "text needs. Put the tokenizer_config.json of the model beside it."
        )
    mask = {"mask_id": masks[0]} if masks else {}
    return dataclasses.replace(config, **marks, **mask)
  except UnreadableError:
    raise
  except ValueError as error:
    raise UnreadableError(str(error)) from error

"""The tokenizer that a GGUF file describes, as the objects of Hugging Face's files.

`tokenizer.ggml.tokens`, `.merges` and `.token_type` hold a byte-level BPE whole; how a
text is cut before it is named by `tokenizer.ggml.pre`, and only names whose rule is
known here are read.
"""

import reprlib
from typing import Any

import numpy as np

from prompt_tuning.data import gguf_header

_AT = "tokenizer.ggml."
_BYTES = {
  "type": "ByteLevel",
  "add_prefix_space": False,
  "trim_offsets": True,
  "use_regex": True,
}
_DIGITS = {"type": "Digits", "individual_digits": True}
# Name of a rule -> what cuts a text, in turn.
RULES: dict[str, list[dict[str, Any]]] = {
  "gpt-2": [_BYTES],
  "smollm": [_DIGITS, _BYTES],
}
# Of `tokenizer.ggml.token_type`.
_CONTROL, _USER = 3, 4
_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def fields(path: Any) -> dict[str, Any]:
  """What a tokenizer.json of the same tokens holds.

  Raises:
    ValueError: if the file is damaged, or its tokenizer of another kind.
  """
  said = _said(path)
  tokens, kinds = said["tokens"], said["kinds"]
  added = [
    {
      "id": i,
      "content": tokens[i],
      "single_word": False,
      "lstrip": False,
      "rstrip": False,
      "normalized": False,
      "special": bool(kinds[i] == _CONTROL),
    }
    for i in np.flatnonzero((kinds == _CONTROL) | (kinds == _USER)).tolist()
  ]
  return {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": added,
    "normalizer": None,
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": RULES[said["pre"]]},
    "post_processor": None,
    "decoder": _BYTES,
    "model": {
      "type": "BPE",
      "dropout": None,
      "unk_token": None,
      "continuing_subword_prefix": None,
      "end_of_word_suffix": None,
      "fuse_unk": False,
      "byte_fallback": False,
      "vocab": {token: i for i, token in enumerate(tokens)},
      "merges": said["merges"],
    },
  }


def marks(path: Any) -> dict[str, Any]:
  """What a tokenizer_config.json says of the same tokens: marks, the chat template.

  Raises:
    ValueError: as `fields`.
  """
  settings, tokens = gguf_header.read(path).settings, _said(path)["tokens"]
  found = {}
  for role, name in _ROLES.items():
    number = settings.get(f"{_AT}{name}_token_id")
    if number is None:
      continue
    if type(number) is not int or not 0 <= number < len(tokens):
      raise _error(path, f"{name}_token_id", number)
    found[f"{role}_token"] = tokens[number]
  template = settings.get("tokenizer.chat_template")
  if isinstance(template, str):
    found["chat_template"] = template
  return found


def is_known(path: Any) -> bool:
  """Whether a GGUF file describes a tokenizer of a kind that is read here."""
  settings = gguf_header.read(path).settings
  model, pre = (settings.get(f"{_AT}{name}") for name in ("model", "pre"))
  return model == "gpt2" and isinstance(pre, str) and pre in RULES


def _said(path: Any) -> dict[str, Any]:
  settings = gguf_header.read(path).settings
  model, pre = (settings.get(f"{_AT}{name}") for name in ("model", "pre"))
  if not is_known(path):
    raise ValueError(
      f"{str(path)!r} holds a tokenizer of the model {reprlib.repr(model)} and the "
      f"rule {reprlib.repr(pre)}; known are the model 'gpt2' and the rules "
      f"{', '.join(RULES)}. Give the path of its tokenizer.json as `VOCABULARY`."
    )
  tokens, merges = (_texts(path, settings, name) for name in ("tokens", "merges"))
  if len(set(tokens)) != len(tokens):
    raise ValueError(
      f"{str(path)!r} holds a token twice in {_AT}tokens: it is damaged."
    )
  kinds = settings.get(f"{_AT}token_type", np.ones(len(tokens), np.int32))
  if not isinstance(kinds, np.ndarray) or kinds.shape != (len(tokens),):
    raise _error(path, "token_type", kinds)
  if settings.get(f"{_AT}add_space_prefix", False):
    raise _error(path, "add_space_prefix", True)
  return {"tokens": tokens, "merges": merges, "kinds": kinds, "pre": pre}


def _texts(path: Any, settings: Any, name: str) -> list[str]:
  found = settings.get(f"{_AT}{name}")
  if not isinstance(found, list):
    raise _error(path, name, found)
  return found


def _error(path: Any, name: str, value: Any) -> ValueError:
  return ValueError(
    f"{str(path)!r} says {_AT}{name} is {reprlib.repr(value)}, which does not fit its "
    "other settings: it is damaged."
  )

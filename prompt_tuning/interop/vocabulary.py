"""Which vocabulary goes with a backbone: the one beside its weights, or one given."""

import json
import os
import pathlib
from typing import Any

from prompt_tuning.core import files
from prompt_tuning.core.context import Spec
from prompt_tuning.data import gguf_header, tokenizer_files, vocabularies
from prompt_tuning.interop import places, untrusted
from prompt_tuning.interop.lazy import UnreadableError

SENTENCEPIECE = "spiece.model"
# Rows beyond the ids: to a multiple of 128, and 100 or 125 sentinels.
PADDING = 255


def located(vocabulary: Any, argument: str = "VOCABULARY") -> Any:
  """What was given, a path made that of a file; nothing is read.

  Args:
    vocabulary: "bytes", a path for `vocabularies.locate`, a vocabulary (ours or
      SeqIO's), or None.
    argument: what the caller knows it by, for messages.

  Raises:
    ValueError: if it is none of them.
  """
  if vocabulary is None or vocabulary == "bytes":
    return vocabulary
  if isinstance(vocabulary, (str, os.PathLike)):
    return vocabularies.locate(vocabulary, argument)
  needed = ("encode", "decode", "vocab_size", "eos_id", "pad_id")
  if all(hasattr(vocabulary, name) for name in needed):
    return vocabulary
  raise ValueError(
    f"`{argument}` must be the path of a spiece.model or a tokenizer.json, 'bytes', or "
    f"a vocabulary of prompt_tuning.data.vocabularies or SeqIO, got {vocabulary!r}."
  )


def made(located: Any, rows: int) -> Any:
  """The vocabulary of what `located` gave."""
  return of_file(located, rows) if isinstance(located, str) else located


def of_file(where: str, rows: int) -> Any:
  """The vocabulary of a file; a SentencePiece file may count the sentinels already.

  Args:
    where: of the file, or "bytes". rows: of the token table.

  Raises:
    UnreadableError: if the file is no vocabulary.
  """
  if where == "bytes":
    return vocabularies.byte()
  kind = "SentencePiece model"
  try:
    if tokenizer_files.is_one(where):
      kind = tokenizer_files.NAME
      return vocabularies.from_file(where)
    found = vocabularies.sentencepiece(where)
    plain = vocabularies.sentencepiece(where, extra_ids=0)
    return plain if plain.vocab_size <= rows < found.vocab_size else found
  except ValueError as error:
    raise UnreadableError(str(error)) from error
  except Exception as error:  # sentencepiece raises RuntimeError, remote places theirs
    raise UnreadableError(f"{where!r} is no {kind}: {error}.") from error


def beside(where: str, rows: int) -> Any:
  """The vocabulary beside the weights, tokens that were added to it included.

  Args:
    where, rows: as in `of_file`.

  Raises:
    UnreadableError: if the file is no vocabulary, or added tokens cannot be had.
  """
  found = of_file(where, rows)
  if not isinstance(found, vocabularies.SentencePiece):
    return found
  added = [token for token in _added(where) if not found.holds(token)]
  if not added:
    return found
  place = files.at(where).parent / tokenizer_files.NAME
  if place.is_file():
    return of_file(str(place), rows)
  raise UnreadableError(
    f"The files beside {where!r} say that tokens were added ({added[0]!r}), which it "
    "does not hold. Load the tokenizer with a current Transformers and save it again: "
    f"that writes a {tokenizer_files.NAME} with them."
  )


def _added(where: str) -> list[str]:
  try:
    return [
      *tokenizer_files.added_beside(where),
      *tokenizer_files.added_within(where),
    ]
  except ValueError as error:
    raise UnreadableError(str(error)) from error


def check_vocabulary(
  spec: Spec, vocabulary: Any, name: str, padding: float = PADDING
) -> None:
  """Refuses a vocabulary that is another backbone's.

  Args:
    spec: of the backbone. vocabulary: ours or SeqIO's. name: of the backbone.
    padding: rows without an id that are understood, as 32128 rows for 32100 ids.

  Raises:
    ValueError: if there are more ids than rows, or far fewer, or it pads or ends a text
      with other ids than the backbone.
  """
  ids, rows = vocabulary.vocab_size, spec.vocabulary
  if ids > rows or ids < rows - padding:
    raise ValueError(
      f"The vocabulary has {ids} ids, but the backbone {name!r} has {rows} rows: it is "
      "another backbone's vocabulary. Bind `VOCABULARY` to its own, with `extra_ids` "
      "if its sentinels are counted otherwise."
    )
  marks, own = (vocabulary.pad_id, vocabulary.eos_id), (spec.ids.pad, spec.ids.end)
  # A family that pads with no word of its own takes any.
  if marks[own[0] < 0 :] != own[own[0] < 0 :]:
    raise ValueError(
      f"The vocabulary ({vocabulary}) pads with the id {marks[0]} and ends a text with "
      f"{marks[1]}, but the backbone {name!r} pads with {own[0]} and ends with "
      f"{own[1]}: give its own vocabulary."
    )


def path_of(vocabulary: Any) -> str | None:
  """The file that a vocabulary was read from, ours or SeqIO's; None for bytes."""
  found = getattr(vocabulary, "path", None)
  return found or getattr(vocabulary, "sentencepiece_model_file", None)


def write(folder: pathlib.Path, where: str) -> None:
  """Copies a vocabulary's file, and what says more of it, under Transformers' names."""
  place = places.find(where)
  if not tokenizer_files.is_one(str(place)):
    (folder / SENTENCEPIECE).write_bytes(place.read_bytes())
    return
  if gguf_header.is_one(place):
    told = {tokenizer_files.NAME: tokenizer_files.of_file(str(place))}
    told[tokenizer_files.CONFIG] = tokenizer_files.beside(where, tokenizer_files.CONFIG)
    for name, fields in told.items():
      text = json.dumps(fields, ensure_ascii=False) + "\n"
      (folder / name).write_text(text, encoding="utf-8")
    return
  pieces = place.name == tokenizer_files.PIECES
  name = tokenizer_files.PIECES if pieces else tokenizer_files.NAME
  (folder / name).write_bytes(place.read_bytes())
  for name in tokenizer_files.BESIDE:
    if (place.parent / name).is_file():
      fields = untrusted.read_object(place.parent / name)
      # It names code that is not copied.
      fields.pop("auto_map", None)
      text = json.dumps(fields, indent=2, ensure_ascii=False) + "\n"
      (folder / name).write_text(text, encoding="utf-8")

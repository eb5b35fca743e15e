"""Vocabularies of a tokenizer.json, the file of Hugging Face's `tokenizers`.

Ids are those of Transformers: added tokens and special ones are found within a text
(`</s>` in a text is the end mark). Nothing is added to a text, cut off or filled up,
whatever the file says of that. `decode` leaves out what Transformers leaves out with
skip_special_tokens, but for sentinels, which an answer may hold.

Which tokens pad, begin and end a text is read from the files beside tokenizer.json
(tokenizer_config.json, special_tokens_map.json, config.json), else from its
post_processor.

A SentencePiece file of the same pieces gives other ids where Transformers departs from
SentencePiece: at sentinels within a word, at the names of marks, and at letters under
heaps of combining marks.
"""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

from prompt_tuning.data.tokenizer_files import (
  CONFIG,
  MAP,
  Tokens,
  added_beside,
  beside,
  content,
  read,
)
from prompt_tuning.data.vocabularies import Vocabulary, up_to_end

# Where no file says which token it is, one of these if it is marked as special.
PADS = ("<pad>", "[PAD]")


@dataclasses.dataclass(frozen=True)
class TokenizerJson(Vocabulary):
  """Tokens of a tokenizer.json, added ones included.

  Attributes:
    path: of the file, local or not.
  """

  path: str

  @functools.cached_property
  def tokens(self) -> Tokens:
    """What the file holds.

    Raises:
      ValueError: if it cannot be read.
    """
    return read(self.path)

  @functools.cached_property
  def vocab_size(self) -> int:
    """The highest id and 1, added tokens included."""
    return max(self.tokens.known, default=-1) + 1

  @functools.cached_property
  def extra_ids(self) -> int:
    """How many sentinels there are."""
    return len(self.tokens.sentinels)

  @functools.cached_property
  def first_sentinel(self) -> int | None:
    """The id of `<extra_id_0>`, if those of the others count down from it."""
    found = self.tokens.sentinels
    first = found.get(0)
    return first if all(i == first - n for n, i in found.items() if first) else None

  @functools.cached_property
  def pad_id(self) -> int | None:
    """What fills rows up; None where no file says."""
    found = self._mark("pad")
    if found is None:
      padding = self.tokens.fields.get("padding")
      found = padding.get("pad_id") if isinstance(padding, dict) else None
    if found is None:
      ids, special = self.tokens.ids, self.tokens.special
      found = next((ids[n] for n in PADS if ids.get(n) in special), None)
    return found

  @functools.cached_property
  def bos_id(self) -> int | None:
    """What begins a text; None where nothing does."""
    found = self._mark("bos")
    return self._template[0] if found is None else found

  @functools.cached_property
  def eos_id(self) -> int:
    """What ends a text.

    Raises:
      ValueError: if no file says.
    """
    found = self._mark("eos")
    found = self._template[1] if found is None else found
    if found is None:
      raise ValueError(
        f"Nothing says which token of {self.path!r} ends a text. Put a {CONFIG} beside "
        'it that says "eos_token".'
      )
    return found

  @functools.cached_property
  def unk_id(self) -> int | None:
    """What stands for the unknown; None where all can be written."""
    model = self.tokens.fields["model"]
    if type(model["unk_id"]) is int:
      return model["unk_id"]
    found = self.tokens.ids.get(model["unk_token"] or "")
    return self._mark("unk") if found is None else found

  def encode(self, text: str) -> list[int]:
    return self.tokens.encode(text)

  def decode(self, ids: Iterable[int]) -> str:
    return self.tokens.decode(up_to_end([int(i) for i in ids], self.eos_id))

  def check(self) -> None:
    """Reads all that will be asked for.

    Raises:
      ValueError: if a file is damaged, or a token that it names is not there.
    """
    for token in added_beside(self.path):
      if token not in self.tokens.ids:
        raise ValueError(
          f"The files beside {self.path!r} name the added token {token!r}, which it "
          "does not hold: they are of two tokenizers. Copy all from the same one."
        )
    for value in (self.pad_id, self.bos_id, self.eos_id, self.unk_id):
      if value is not None and value not in self.tokens.known:
        raise ValueError(f"{self.path!r} names the id {value!r}, which no token has.")

  def for_seqio(self) -> Any:
    from prompt_tuning.data import tokenizer_seqio

    return tokenizer_seqio.TokenizerJsonVocabulary(self)

  def __str__(self) -> str:
    return f"the tokens of {self.path!r}"

  def _mark(self, role: str) -> int | None:
    """The id of a token that a file beside this one names, or of its id there."""
    for name in (CONFIG, MAP):
      token = content(beside(self.path, name).get(f"{role}_token"))
      if token is not None:
        if token not in self.tokens.ids:
          raise ValueError(
            f"{name} beside {self.path!r} says {role}_token {token!r}, which it does "
            "not hold: they are of two tokenizers. Copy both from the same one."
          )
        return self.tokens.ids[token]
    stated = beside(self.path, "config.json").get(f"{role}_token_id")
    stated = stated[0] if isinstance(stated, list) and stated else stated
    return stated if type(stated) is int else None

  @functools.cached_property
  def _template(self) -> tuple[int | None, int | None]:
    """(what the post_processor sets before a text, what behind it)."""
    first, last = _ends(self.tokens.fields.get("post_processor"))
    return self.tokens.ids.get(first), self.tokens.ids.get(last)


def _ends(processor: Any) -> tuple[str | None, str | None]:
  """(token that a post_processor sets first, token that it sets last)."""
  match processor:
    case {"type": "TemplateProcessing", "single": [*parts]}:
      names = [_special(part) for part in parts]
      return (names[0], names[-1]) if len(names) > 1 else (None, None)
    case {"type": "BertProcessing" | "RobertaProcessing"}:
      pair = [processor.get("cls"), processor.get("sep")]
      first, last = [v[0] if isinstance(v, list) and v else None for v in pair]
      return content(first), content(last)
    case {"type": "Sequence", "processors": [*parts]}:
      found = [_ends(part) for part in parts]
      firsts, lasts = [f for f, _ in found if f], [last for _, last in found if last]
      return (firsts[0] if firsts else None), (lasts[-1] if lasts else None)
  return None, None


def _special(part: Any) -> str | None:
  match part:
    case {"SpecialToken": {"id": str(name)}}:
      return name
  return None

"""Vocabularies of a tokenizer.json, the file of Hugging Face's `tokenizers`.

Ids are those of Transformers: added tokens and special ones are found within a text
(`</s>` in a text is the end mark). Nothing is added to a text, cut off or filled up,
whatever the file says of that. `decode` leaves out what Transformers leaves out with
skip_special_tokens, but for sentinels, which an answer may hold.

Which tokens pad, begin and end a text is read from the files beside tokenizer.json
(tokenizer_config.json, special_tokens_map.json, config.json), else from its
post_processor. They are read as data: classes and code that they name play no part.
"""

import base64
import contextlib
import dataclasses
import functools
import json
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prompt_tuning.core import files
from prompt_tuning.data.vocabularies import Vocabulary, up_to_end

NAME = "tokenizer.json"
# What Transformers puts beside it.
CONFIG, MAP, ADDED = BESIDE = (
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
)
# Several times the largest known, so that a wrong file is not read to its end.
MOST_BYTES = 1 << 28
SENTINEL = re.compile("\u2581?<extra_id_([0-9]{1,9})>")
_GLUED = re.compile(r"(?<=\S)(<extra_id_[0-9]{1,9}>)")
# Where no file says which token it is, one of these if it is marked as special.
PADS = ("<pad>", "[PAD]")


@dataclasses.dataclass(frozen=True)
class Tokens:
  """Text to ids and back, whatever ends a text.

  Attributes:
    name: of the file, for messages. backend: `tokenizers.Tokenizer`. fields: the file.
    ids: token -> id. special: ids that no text shows, sentinels left out.
  """

  name: str
  backend: Any
  fields: Mapping[str, Any]
  ids: Mapping[str, int]
  special: frozenset[int]

  def encode(self, text: str) -> list[int]:
    """Ids of a text."""
    with _one_error(f"{self.name!r} cannot encode {text[:80]!r}"):
      return self.backend.encode(text, add_special_tokens=False).ids

  def decode(self, ids: Iterable[int]) -> str:
    """Text of ids; those of no token are left out, as those of special ones."""
    known = self.known
    kept = [int(i) for i in ids if i in known and i not in self.special]
    with _one_error(f"{self.name!r} cannot decode {kept[:20]}"):
      text = self.backend.decode(kept, skip_special_tokens=False)
    # Its words begin with their space, but for sentinels, whose space is lost.
    return _GLUED.sub(r" \1", text) if self.marks_spaces else text

  @functools.cached_property
  def marks_spaces(self) -> bool:
    """Whether a piece says that a space stands before it, as SentencePiece's do."""
    nodes = _nodes(self.fields.get("decoder"))
    return any(node.get("type") == "Metaspace" for node in nodes)

  @functools.cached_property
  def known(self) -> frozenset[int]:
    """Ids of a token."""
    return frozenset(self.ids.values())

  @functools.cached_property
  def sentinels(self) -> dict[int, int]:
    """Number of a sentinel -> its id."""
    found = ((SENTINEL.fullmatch(token), i) for token, i in self.ids.items())
    return {int(match.group(1)): i for match, i in found if match}


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
    """The id of `<extra_id_0>`."""
    return self.tokens.sentinels.get(0)

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
    if isinstance(model.get("unk_id"), int):
      return model["unk_id"]
    found = self.tokens.ids.get(model.get("unk_token") or "")
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
      token = _content(_beside(self.path, name).get(f"{role}_token"))
      if token is not None:
        if token not in self.tokens.ids:
          raise ValueError(
            f"{name} beside {self.path!r} says {role}_token {token!r}, which it does "
            "not hold: they are of two tokenizers. Copy both from the same one."
          )
        return self.tokens.ids[token]
    stated = _beside(self.path, "config.json").get(f"{role}_token_id")
    stated = stated[0] if isinstance(stated, list) and stated else stated
    return stated if type(stated) is int else None

  @functools.cached_property
  def _template(self) -> tuple[int | None, int | None]:
    """(what the post_processor sets before a text, what behind it)."""
    first, last = _ends(self.tokens.fields.get("post_processor"))
    return self.tokens.ids.get(first), self.tokens.ids.get(last)


def is_one(path: str) -> bool:
  """Whether a file is a tokenizer.json rather than a SentencePiece model."""
  if path.endswith(".json"):
    return True
  with files.at(path).open("rb") as file:
    return file.read(64).lstrip()[:1] == b"{"


def read(path: str) -> Tokens:
  """Reads a tokenizer.json.

  Raises:
    ValueError: if there is none, it is damaged, or `tokenizers` is not installed.
  """
  place = files.at(path)
  stamp = None
  if not files.is_remote(path) and place.is_file():
    stat = place.stat()
    stamp = stat.st_mtime_ns, stat.st_size, stat.st_ino
  return _read(str(path), stamp)


@functools.lru_cache(maxsize=4)
def _read(path: str, stamp: Any) -> Tokens:
  """`stamp` tells a file from another that took its place."""
  try:
    import tokenizers
  except ImportError as error:
    raise ValueError(
      f"{path!r} is read with the package `tokenizers`, which cannot be imported: "
      f"{error}. Install it (pip install tokenizers)."
    ) from error
  fields = _object(path, _text(path))
  _check(path, fields)
  reader = f"tokenizers {tokenizers.__version__}"
  with _one_error(f"{path!r} is no file that {reader} reads"):
    # What was checked, whatever another reader sees in the file.
    backend = tokenizers.Tokenizer.from_str(json.dumps(fields))
    backend.no_truncation()
    backend.no_padding()
    ids = backend.get_vocab(with_added_tokens=True)
    added = backend.get_added_tokens_decoder()
  special = frozenset(
    i for i, t in added.items() if t.special and not SENTINEL.fullmatch(t.content)
  )
  return Tokens(path, backend, fields, ids, special)


def _check(path: str, fields: Mapping[str, Any]) -> None:
  """Refuses what the Rust library would end the whole process for."""
  if not isinstance(fields.get("model"), dict):
    raise ValueError(f"{path!r} is no tokenizer.json: it holds no object `model`.")
  for node in _nodes(fields.get("normalizer")):
    held = node.get("precompiled_charsmap")
    if held is None:
      continue
    try:
      data = base64.b64decode(held, validate=True)
      size = struct.unpack("<I", data[:4])[0]
    except (ValueError, TypeError, struct.error) as error:
      raise ValueError(
        f"{path!r} holds a precompiled_charsmap that cannot be read: {error}."
      ) from error
    if size % 4 or size > len(data) - 4:
      raise ValueError(
        f"{path!r} holds a precompiled_charsmap of {len(data)} bytes that claims "
        f"{size}: it is damaged. Copy the file again."
      )


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
  """Every object in a tree."""
  stack = [tree]
  while stack:
    node = stack.pop()
    if isinstance(node, dict):
      yield node
      stack += node.values()
    elif isinstance(node, list):
      stack += node


@contextlib.contextmanager
def _one_error(what: str) -> Iterator[None]:
  try:
    yield
  except BaseException as error:
    # A panic of the Rust library is no Exception, nor is its class importable.
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
      raise ValueError(f"{what}: {str(error)[:500]}.") from error
    raise


def added_beside(path: str) -> list[str]:
  """Tokens that the files beside a vocabulary's say were added to it."""
  said = _beside(path, CONFIG).get("added_tokens_decoder")
  found = [_content(v) for v in said.values()] if isinstance(said, dict) else []
  found += list(_beside(path, ADDED))
  listed = _beside(path, NAME).get("added_tokens")
  found += [_content(v) for v in listed] if isinstance(listed, list) else []
  return [token for token in found if token is not None]


def _beside(path: str, name: str) -> dict[str, Any]:
  """The object of a file in the same folder; empty where there is none."""
  place = files.at(path).parent / name
  return _object(str(place), _text(place)) if place.is_file() else {}


def _text(path: Any) -> str:
  place = files.at(path)
  try:
    if not place.is_file():
      raise ValueError("it is no regular file" if place.exists() else "it is not there")
    with place.open("rb") as file:
      data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
      raise ValueError(f"it is larger than {MOST_BYTES:,} bytes")
    return data.decode("utf-8")
  except (OSError, ValueError) as error:
    raise ValueError(f"{str(path)!r} cannot be read: {error}.") from error


def _object(path: str, text: str) -> dict[str, Any]:
  try:
    found = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path!r} cannot be read: {error}.") from error
  if not isinstance(found, dict):
    raise ValueError(f"{path!r} holds {type(found).__name__}, not an object.")
  return found


def _content(value: Any) -> str | None:
  """The text of a token, which stands alone or among its settings."""
  value = value.get("content") if isinstance(value, dict) else value
  return value if isinstance(value, str) else None


def _ends(processor: Any) -> tuple[str | None, str | None]:
  """(token that a post_processor sets first, token that it sets last)."""
  match processor:
    case {"type": "TemplateProcessing", "single": [*parts]}:
      names = [_special(part) for part in parts]
      return (names[0], names[-1]) if len(names) > 1 else (None, None)
    case {"type": "BertProcessing" | "RobertaProcessing"}:
      pair = [processor.get("cls"), processor.get("sep")]
      first, last = [v[0] if isinstance(v, list) and v else None for v in pair]
      return _content(first), _content(last)
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

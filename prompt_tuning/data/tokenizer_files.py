"""The files of Hugging Face's `tokenizers`: read as data, and refused in one sentence.

A tokenizer.json holds all that makes ids of a text; Transformers puts files beside it
that say which tokens mark what. Classes and code that they name play no part. A GGUF
file stands for all of them.
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
from prompt_tuning.data import gguf_header, tokenizer_gguf

NAME = "tokenizer.json"
# A BERT's pieces, one a line, as files from before tokenizer.json hold them.
PIECES = "vocab.txt"
# What Transformers puts beside it.
CONFIG, MAP, ADDED = BESIDE = (
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
)
# Of BERT: pads, is unknown, opens, closes, and stands for a masked word.
MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# Several times the largest known, so that a wrong file is not read to its end.
MOST_BYTES = 1 << 28
SENTINEL = re.compile("\u2581?<extra_id_([0-9]{1,9})>")
_GLUED = re.compile(r"(?<=\S)(<extra_id_[0-9]{1,9}>)")


@dataclasses.dataclass(frozen=True)
class Tokens:
  """Text to ids and back, whatever ends a text.

  Attributes:
    name: of the file, for messages. backend: `tokenizers.Tokenizer`. fields: the file,
      without its pieces. ids: token -> id. special: ids that no text shows, sentinels
      left out.
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


def is_one(path: str) -> bool:
  """Whether a file is a tokenizer.json, or read as one: GGUF, a BERT's vocab.txt."""
  if path.endswith((".json", PIECES)) or gguf_header.is_one(path):
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
  fields = of_file(path)
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
  model = {name: fields["model"].get(name) for name in ("unk_id", "unk_token")}
  return Tokens(path, backend, {**fields, "model": model}, ids, special)


def of_file(path: str) -> dict[str, Any]:
  """The object of a tokenizer.json, or the same of a file of pieces or a GGUF file.

  Raises:
    ValueError: if it cannot be read.
  """
  if gguf_header.is_one(path):
    return tokenizer_gguf.fields(path)
  text = _read_text(path)
  return _read_object(path, _of_pieces(path, text) if path.endswith(PIECES) else text)


def content_of(path: str) -> bytes:
  """The bytes of a tokenizer.json, made where the file is another kind.

  Raises:
    ValueError: if it cannot be read.
  """
  if path.endswith(PIECES) or gguf_header.is_one(path):
    return json.dumps(of_file(path), ensure_ascii=False).encode()
  return files.at(path).read_bytes()


def _of_pieces(path: str, text: str) -> str:
  """The tokenizer.json of a file of pieces, as BERT splits words into them.

  Letters are kept as they are where tokenizer_config.json says do_lower_case false.

  Raises:
    ValueError: if a piece stands twice, or one of BERT's marks is missing.
  """
  from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
  from tokenizers.processors import TemplateProcessing

  pieces = text.splitlines()
  ids = {piece: number for number, piece in enumerate(pieces)}
  lacking = [mark for mark in MARKS if mark not in ids]
  if lacking or len(ids) < len(pieces):
    what = f"lacks {', '.join(lacking)}" if lacking else "holds a piece twice"
    raise ValueError(f"{path!r} {what}: it is no list of a BERT's pieces.")
  lower = beside(path, CONFIG).get("do_lower_case", True)
  made = Tokenizer(
    models.WordPiece(ids, unk_token=MARKS[1], max_input_chars_per_word=100)
  )
  made.normalizer = normalizers.BertNormalizer(lowercase=bool(lower))
  made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  made.decoder = decoders.WordPiece(prefix="##")
  made.add_special_tokens(list(MARKS))
  first, last = MARKS[2:4]
  ends = [(mark, ids[mark]) for mark in (first, last)]
  made.post_processor = TemplateProcessing(f"{first} $A {last}", None, ends)
  return made.to_str()


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
  said = beside(path, CONFIG).get("added_tokens_decoder")
  found = [content(v) for v in said.values()] if isinstance(said, dict) else []
  found += list(beside(path, ADDED))
  return [token for token in found if token is not None]


def added_within(path: str) -> list[str]:
  """Tokens that the tokenizer.json beside a vocabulary holds as added ones."""
  listed = beside(path, NAME).get("added_tokens")
  found = [content(v) for v in listed] if isinstance(listed, list) else []
  return [token for token in found if token is not None]


def beside(path: str, name: str) -> dict[str, Any]:
  """The object of a file in the same folder; empty where there is none.

  A GGUF file says itself what its tokens mark; nothing beside it counts.
  """
  if gguf_header.is_one(path):
    return tokenizer_gguf.marks(path) if name == CONFIG else {}
  place = files.at(path).parent / name
  return _read_object(str(place), _read_text(place)) if place.is_file() else {}


def _read_text(path: Any) -> str:
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


def _read_object(path: str, text: str) -> dict[str, Any]:
  try:
    found = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path!r} cannot be read: {error}.") from error
  if not isinstance(found, dict):
    raise ValueError(f"{path!r} holds {type(found).__name__}, not an object.")
  return found


def content(value: Any) -> str | None:
  """The text of a token, which stands alone or among its settings."""
  value = value.get("content") if isinstance(value, dict) else value
  return value if isinstance(value, str) else None

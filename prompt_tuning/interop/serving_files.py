"""The files of a serving artifact, read with little more than jax and numpy."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import export

FORMAT = "prompt_tuning/serving/1"
CARD = "card.json"
WEIGHTS = "weights.safetensors"
PROGRAM = "{}.jax_export"
EOS, FIRST_BYTE = 1, 3

# Safetensors' names of dtypes; jax.numpy's bfloat16 is a dtype of numpy.
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": jax.numpy.bfloat16}


@dataclasses.dataclass(frozen=True)
class Pieces:
  """Text to ids and back.

  Attributes:
    encode: text -> piece ids without an end mark. decode: ids -> text.
  """

  encode: Callable[[str], Sequence[int]]
  decode: Callable[[Sequence[int]], str]


def read_card(folder: pathlib.Path) -> dict[str, Any]:
  """The card, its own digest and its files checked.

  Raises:
    ValueError: if it is no artifact, or something in it is missing or damaged.
  """
  try:
    card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    found = card["format"], card["kind"]
    digests, own = dict(card["files"]), card["digest"]
  except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
    raise ValueError(
      f"{str(folder)!r} is no serving artifact: {CARD} cannot be read ({error!r}). "
      "Give the folder that `export --to=stablehlo` wrote."
    ) from error
  if found != (FORMAT, "stablehlo"):
    raise ValueError(
      f"{str(folder / CARD)!r} says {found}; this version reads {FORMAT!r} of the kind "
      "'stablehlo'."
    )
  if own != card_digest(card):
    raise ValueError(
      f"{str(folder / CARD)!r} is damaged or was edited: it is not what its own digest "
      "says. Copy the whole folder again."
    )
  for name, digest in digests.items():
    path = folder / pathlib.PurePath(name).name
    if not path.is_file():
      raise ValueError(f"{str(folder)!r} lacks {name}. Copy the whole folder again.")
    with path.open("rb") as file:
      if hashlib.file_digest(file, "sha256").hexdigest() != digest:
        raise ValueError(
          f"{str(path)!r} is damaged or of another artifact: its digest is not that of "
          f"{CARD}. Copy the whole folder again."
        )
  return card


def card_digest(card: Mapping[str, Any]) -> str:
  """Of all that a card says but this."""
  rest = {name: value for name, value in card.items() if name != "digest"}
  return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_program(folder: pathlib.Path, name: str) -> Callable[..., Any]:
  """A program, compiled when it is called."""
  data = bytearray((folder / PROGRAM.format(name)).read_bytes())
  return jax.jit(export.deserialize(data).call)


def read_weights(folder: pathlib.Path) -> Iterator[tuple[str, Any]]:
  """The weights by name, one after the other onto the device."""
  data = np.memmap(folder / WEIGHTS, np.uint8, "r")
  start = 8 + int.from_bytes(data[:8].tobytes(), "little")
  header = json.loads(data[8:start].tobytes())
  for name, entry in header.items():
    if name != "__metadata__":
      first, last = entry["data_offsets"]
      value = data[start + first : start + last].view(DTYPES[entry["dtype"]])
      yield name, jax.device_put(value.reshape(entry["shape"]))


def read_vocabulary(
  folder: pathlib.Path, said: Mapping[str, Any] | None
) -> Pieces | None:
  """The vocabulary that a card speaks of, if it does."""
  if said is None:
    return None
  if said["kind"] == "bytes":
    return Pieces(_encode_bytes, _decode_bytes)
  import sentencepiece

  model = sentencepiece.SentencePieceProcessor(model_file=str(folder / said["file"]))
  size, unknown = model.get_piece_size(), model.unk_id()

  def decode(ids: Sequence[int]) -> str:
    return model.decode([i if i < size else unknown for i in ids]).strip()

  return Pieces(model.encode, decode)


def _encode_bytes(words: str) -> list[int]:
  return [FIRST_BYTE + byte for byte in words.encode("utf-8")]


def _decode_bytes(ids: Sequence[int]) -> str:
  found = bytes(i - FIRST_BYTE for i in ids if 0 <= i - FIRST_BYTE < 256)
  return found.decode("utf-8", errors="ignore").strip()

"""The files of a serving artifact, read with little more than jax and numpy."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax import export

from prompt_tuning.interop import tensor_files, untrusted
from prompt_tuning.interop.finite import only_finite
from prompt_tuning.interop.lazy import UnreadableError
from prompt_tuning.interop.serving_card import CARD, PROGRAM, WEIGHTS

FIRST_BYTE = 3


@dataclasses.dataclass(frozen=True)
class Pieces:
  """Text to ids and back.

  Attributes:
    encode: text -> piece ids without an end mark. decode: ids -> text.
  """

  encode: Callable[[str], Sequence[int]]
  decode: Callable[[Sequence[int]], str]


def said(leaf: Any) -> dict[str, Any]:
  """What a card says of anything with a shape and a dtype; symbols by their names."""
  shape = [n if isinstance(n, int) else str(n) for n in leaf.shape]
  return {"dtype": jax.numpy.dtype(leaf.dtype).name, "shape": shape}


def read_program(
  folder: pathlib.Path, name: str, card: Mapping[str, Any]
) -> Callable[..., Any]:
  """A program, compiled when it is called.

  Args:
    folder: of the artifact. name: of the program. card: of `serving_card.read`.

  Raises:
    UnreadableError: if it is none, or not the one that the card describes.
    ImportError: if flatbuffers is not installed.
  """
  path = untrusted.inside(folder, PROGRAM.format(name))
  try:
    program = export.deserialize(bytearray(path.read_bytes()))
    found = _interface(program)
  except ImportError:
    raise
  except Exception as error:  # what its reader raises for bytes of whatever kind
    raise _unreadable(path, card, error) from error
  wanted = {
    "platforms": sorted(card["platforms"]),
    "devices": 1,
    "weights": card["weights"],
    "arguments": card["arguments"],
    "results": card["programs"][name],
  }
  differ = [key for key, value in wanted.items() if found[key] != value]
  if differ:
    raise UnreadableError(
      f"{str(path)!r} is another program than {CARD} describes: its "
      f"{', '.join(differ)} differ. Copy the whole folder again."
    )
  return jax.jit(program.call)


def _interface(program: Any) -> dict[str, Any]:
  """What a program says of itself, as a card does."""
  given = jax.tree.unflatten(program.in_tree, map(said, program.in_avals))
  (weights, arguments), _ = given
  results = jax.tree.unflatten(program.out_tree, map(said, program.out_avals))
  return {
    "platforms": sorted(program.platforms),
    "devices": program.nr_devices,
    "weights": weights,
    "arguments": arguments,
    "results": results,
  }


def _unreadable(
  path: pathlib.Path, card: Mapping[str, Any], error: Exception
) -> UnreadableError:
  return UnreadableError(
    f"{str(path)!r} cannot be read by jax {jax.__version__} (it was written with jax "
    f"{card.get('jax')}): {repr(error)[:300]}."
  )


def read_weights(
  folder: pathlib.Path, card: Mapping[str, Any]
) -> Iterator[tuple[str, Any]]:
  """The weights by name, one after the other onto the device.

  Raises:
    UnreadableError: if they are not those of the card, or not finite.
  """
  path = untrusted.inside(folder, WEIGHTS)
  found = tensor_files.tensors(path)
  there = {name: said(lazy) for name, lazy in found.items()}
  differ = [
    f"{name} is {there.get(name)}, not {card['weights'].get(name)}"
    for name in sorted(there.keys() | card["weights"].keys())
    if there.get(name) != card["weights"].get(name)
  ]
  if differ:
    raise UnreadableError(
      f"{str(path)!r} does not hold what {CARD} says: {'; '.join(differ[:4])}."
    )
  for name, lazy in found.items():
    yield name, jax.device_put(only_finite(lazy, name, path).read())


def read_vocabulary(
  folder: pathlib.Path, card: Mapping[str, Any] | None
) -> Pieces | None:
  """The vocabulary that a card speaks of, if it does.

  Raises:
    UnreadableError: if its file is no SentencePiece model.
    ImportError: if sentencepiece is not installed.
  """
  if card is None:
    return None
  if card["kind"] == "bytes":
    return Pieces(_encode_bytes, _decode_bytes)
  if card["kind"] == "tokenizers":
    from prompt_tuning.data import tokenizer_files

    tokens = tokenizer_files.read(str(untrusted.inside(folder, card["file"])))
    return Pieces(tokens.encode, lambda ids: tokens.decode(ids).strip())
  import sentencepiece

  path = untrusted.inside(folder, card["file"])
  try:
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    size, unknown = model.get_piece_size(), model.unk_id()
  except Exception as error:  # RuntimeError, or whatever its parser raises
    raise UnreadableError(
      f"{str(path)!r} is no SentencePiece model: {repr(error)[:300]}."
    ) from error

  def decode(ids: Sequence[int]) -> str:
    return model.decode([i if i < size else unknown for i in ids]).strip()

  return Pieces(model.encode, decode)


def _encode_bytes(words: str) -> list[int]:
  return [FIRST_BYTE + byte for byte in words.encode("utf-8")]


def _decode_bytes(ids: Sequence[int]) -> str:
  found = bytes(i - FIRST_BYTE for i in ids if 0 <= i - FIRST_BYTE < 256)
  return found.decode("utf-8", errors="ignore").strip()

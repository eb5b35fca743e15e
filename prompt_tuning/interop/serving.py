"""Answers from an artifact of `python -m prompt_tuning.export --to=stablehlo`.

Reading one takes jax, numpy and flatbuffers (with which `jax.export` reads), and
sentencepiece for texts; neither Flax nor TensorFlow nor this library's model code. So a
server may install this package alone (`pip install --no-deps`) beside those.

  model = serving.load("artifact")
  model.predict(["what a film"])         # texts, as `pt.predict` gives them
  model.classify(["what a film"])        # labels and scores [B K], as `pt.classify`
  model.run("generate", inputs=ids_BT)   # the program itself, on ids of any B and T

A program is compiled once for each shape. Texts come in rows of few lengths and
batches of few sizes for that reason.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from prompt_tuning.data.task import MARK, split_mark
from prompt_tuning.outputs import text

FORMAT = "prompt_tuning/serving/1"
CARD = "card.json"
WEIGHTS = "weights.safetensors"
PROGRAM = "{}.jax_export"
EOS, FIRST_BYTE = 1, 3

# Rows of texts are as long as a multiple of this, and so many to a batch at the most.
ROUND, MOST = 16, 64

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


@dataclasses.dataclass(frozen=True)
class Served:
  """A model with its prompt, ready to answer.

  Attributes:
    card: what the artifact says of itself.
    programs: name -> compiled function of weights and features.
    weights: name -> array, on the device.
    pieces: None where the artifact holds no vocabulary.
  """

  card: dict[str, Any]
  programs: Mapping[str, Callable[..., dict[str, Any]]]
  weights: Mapping[str, Any]
  pieces: Pieces | None

  def run(self, program: str, **features: Any) -> dict[str, np.ndarray]:
    """What a program says of features, shapes and names as in `card["programs"]`.

    Raises:
      ValueError: for an unknown program, or features of other names, ranks or dtypes.
    """
    if program not in self.programs:
      hint = " Export with labels to choose among them." if program == "choose" else ""
      raise ValueError(
        f"The artifact has no program {program!r}; it has {sorted(self.programs)}."
        f"{hint}"
      )
    given = _checked(features, self.card["arguments"])
    return jax.device_get(self.programs[program](self.weights, given))

  def predict(self, texts: Sequence[str], external: Any = None) -> list[str]:
    """One written answer a text.

    Args:
      texts: as for `pt.predict`. external: vectors [B C], for a prompt that reads some.
    """
    found = self._answers("generate", texts, external)
    ids = [row for batch in found for row in batch["ids"]]
    return text.answers(np.array(ids), self._pieces().decode) if ids else []

  def classify(
    self, texts: Sequence[str], external: Any = None
  ) -> tuple[list[str], np.ndarray]:
    """The likeliest label of each text, and log-probabilities [B K] of all labels."""
    found = [batch["scores"] for batch in self._answers("choose", texts, external)]
    labels = self.card["labels"] or []
    scores_BK = np.concatenate(found) if found else np.zeros((0, len(labels)))
    return [labels[k] for k in scores_BK.argmax(1)] if found else [], scores_BK

  def _pieces(self) -> Pieces:
    if self.pieces is None:
      raise ValueError(
        "The artifact holds no vocabulary, so it takes ids: call `run` with them."
      )
    return self.pieces

  def _answers(
    self, program: str, texts: Sequence[str], external: Any
  ) -> Iterator[dict[str, np.ndarray]]:
    """What a program says, one batch at a time, the rows in the texts' order."""
    if program not in self.programs:
      self.run(program)
    columns: dict[str, Any] = {} if external is None else {"external": external}
    ids, marks = _tokens(texts, self._pieces(), self.card["place"] == "mark")
    if self.card["place"] == "mark":
      columns["mark"] = marks
    columns = {name: np.asarray(value) for name, value in columns.items()}
    for name, value in columns.items():
      if value.shape[:1] != (len(texts),):
        raise ValueError(
          f"`{name}` must have one row for each of the {len(texts)} texts, got shape "
          f"{value.shape}."
        )
    width = -(-max(map(len, ids), default=1) // ROUND) * ROUND
    for start in range(0, len(ids), MOST):
      chosen = range(start, min(start + MOST, len(ids)))
      rows = [*chosen] + [chosen[-1]] * (_size(len(chosen)) - len(chosen))
      inputs = np.zeros((len(rows), width), np.int32)
      for row, number in zip(inputs, rows, strict=True):
        row[: len(ids[number])] = ids[number]
      rest = {name: value[np.array(rows)] for name, value in columns.items()}
      found = self.run(program, inputs=inputs, **rest)
      yield {name: value[: len(chosen)] for name, value in found.items()}


def _size(rows: int) -> int:
  """The next power of two, so that few sizes of batches are compiled."""
  return 1 << (rows - 1).bit_length()


def _tokens(
  texts: Sequence[str], pieces: Pieces, marked: bool
) -> tuple[list[list[int]], np.ndarray]:
  """Ids of each text, end mark last, and how many of them stand before its mark."""
  ids, marks = [], []
  for i, one in enumerate(texts):
    if isinstance(texts, str) or not isinstance(one, str):
      raise ValueError(f"`texts` must be a list of texts, got {one!r} at {i}.")
    before, rest = split_mark(one)
    if marked and before is None:
      raise ValueError(
        f"`texts[{i}]` holds no {MARK}; this prompt stands where that is written."
      )
    ids.append([*pieces.encode(rest), EOS])
    marks.append(-1 if before is None else len(pieces.encode(before)))
  return ids, np.array(marks, np.int32)


def _checked(
  features: Mapping[str, Any], arguments: Mapping[str, Mapping[str, Any]]
) -> dict[str, np.ndarray]:
  if set(features) != set(arguments):
    raise ValueError(
      f"The program takes the features {sorted(arguments)}, got {sorted(features)}."
    )
  given = {name: np.asarray(value) for name, value in features.items()}
  rows = {len(value) if value.ndim else None for value in given.values()}
  for name, value in given.items():
    wanted = arguments[name]
    shape, dtype = wanted["shape"], np.dtype(wanted["dtype"])
    fits = value.ndim == len(shape) and 0 not in value.shape
    sizes = zip(shape, value.shape, strict=True) if fits else ()
    fits &= all(isinstance(n, str) or n == m for n, m in sizes)
    if not fits or value.dtype.kind != dtype.kind or len(rows) > 1:
      raise ValueError(
        f"`{name}` must be {dtype} {shape} (b: the same in all features), got "
        f"{value.dtype} {list(value.shape)}."
      )
    given[name] = value.astype(dtype)
  return given


def load(folder: str | pathlib.Path) -> Served:
  """Opens an artifact; nothing is compiled yet.

  Every file is checked against its digest in card.json, so that files that are damaged
  or of two artifacts are found here. A program is code for XLA: load those that you
  trust, as you would a binary.

  Raises:
    ValueError: if it is no artifact, damaged, or not made for this machine's platform.
  """
  folder = pathlib.Path(folder)
  card = _card(folder)
  platform = jax.export.default_export_platform()
  if platform not in card["platforms"]:
    raise ValueError(
      f"{str(folder)!r} was made for {card['platforms']}, but jax runs on {platform!r} "
      f"here. Export it with --platforms={','.join([*card['platforms'], platform])}."
    )
  try:
    programs = {name: _program(folder, name) for name in card["programs"]}
    weights = dict(_weights(folder / WEIGHTS))
    pieces = _vocabulary(folder, card["vocabulary"])
  except ImportError as error:
    raise ValueError(f"{str(folder)!r} needs a missing library: {error}.") from error
  except Exception as error:  # each reader has exceptions of its own
    raise ValueError(
      f"{str(folder)!r} cannot be read by jax {jax.__version__} (it was written with "
      f"jax {card.get('jax')}): {error!r}."
    ) from error
  return Served(card, programs, weights, pieces)


def _card(folder: pathlib.Path) -> dict[str, Any]:
  """The card, its files checked."""
  try:
    card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    found = card["format"], card["kind"]
    digests = dict(card["files"])
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f"{str(folder)!r} is no serving artifact: {CARD} cannot be read ({error!r}). "
      "Give the folder that `export --to=stablehlo` wrote."
    ) from error
  if found != (FORMAT, "stablehlo"):
    raise ValueError(
      f"{str(folder / CARD)!r} says {found}; this version reads {FORMAT!r} of the kind "
      "'stablehlo'."
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


def _program(folder: pathlib.Path, name: str) -> Callable[..., Any]:
  data = bytearray((folder / PROGRAM.format(name)).read_bytes())
  return jax.jit(jax.export.deserialize(data).call)


def _weights(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
  """Arrays of a safetensors file, one after the other onto the device."""
  data = np.memmap(path, np.uint8, "r")
  start = 8 + int.from_bytes(data[:8].tobytes(), "little")
  header = json.loads(data[8:start].tobytes())
  for name, entry in header.items():
    if name != "__metadata__":
      first, last = entry["data_offsets"]
      value = data[start + first : start + last].view(DTYPES[entry["dtype"]])
      yield name, jax.device_put(value.reshape(entry["shape"]))


def _vocabulary(folder: pathlib.Path, said: Mapping[str, Any] | None) -> Pieces | None:
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

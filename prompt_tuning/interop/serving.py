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
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any

import jax
import numpy as np
from jax import export

from prompt_tuning.data import lengths
from prompt_tuning.data.given import Wants
from prompt_tuning.data.task import MARK, split_mark
from prompt_tuning.data.texts import short
from prompt_tuning.interop import serving_card, serving_files, serving_reads
from prompt_tuning.interop.serving_files import Pieces
from prompt_tuning.interop.serving_reads import Reads
from prompt_tuning.outputs import words

# Rows of texts are as long as a multiple of this, and so many to a batch at the most.
ROUND, MOST = 16, 64


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
    given = _checked(features, self.card)
    return jax.device_get(self.programs[program](self.weights, given))

  def predict(
    self, texts: Iterable[Any], external: Any = None, task: Any = None
  ) -> list[str]:
    """One written answer a text.

    Args:
      texts: as for `pt.predict`, {column: text} where the prompt's template has several
        columns.
      external, task: as for `pt.predict`.
    """
    if "classify" in self.programs:
      return self._headed(texts, external, task)[0]
    ids = self._answers("generate", texts, external, task).get("ids")
    marks = serving_reads.of(self.card).marks
    return [] if ids is None else words.answers(ids, self._pieces().decode, marks)

  def classify(
    self, texts: Iterable[Any], external: Any = None, task: Any = None
  ) -> tuple[list[str], np.ndarray]:
    """The label of each text, and what its scores [B K] go by.

    Of a choice they are log-probabilities of all labels; of a head see
    `outputs.classes`.
    """
    if "classify" in self.programs:
      return self._headed(texts, external, task)
    labels = self.card.get("labels") or []
    scores_BK = self._answers("choose", texts, external, task).get("scores")
    if scores_BK is None:
      return [], np.zeros((0, len(labels)))
    return [labels[k] for k in scores_BK.argmax(1)], scores_BK

  def _headed(
    self, texts: Iterable[Any], external: Any, task: Any
  ) -> tuple[list[str], np.ndarray]:
    """What the head says of each text, and its scores."""
    labels, head = self.card.get("labels"), self.card["head"]
    scores = self._answers("classify", texts, external, task).get("scores")
    if scores is None:
      return [], np.zeros((0, len(labels or ())))
    return words.said(scores, labels, **head), scores

  def _numbers(self, count: int, task: Any, reads: Reads) -> np.ndarray:
    """Numbers of tasks [B]."""
    wanted = Wants(reads.tasks, names=reads.names)
    rows = wanted.beside(count, task)
    return np.array([row["task"] for row in rows], np.int32)

  def _pieces(self) -> Pieces:
    if self.pieces is None:
      raise ValueError(
        "The artifact holds no vocabulary, so it takes ids: call `run` with them."
      )
    return self.pieces

  def _answers(
    self, program: str, texts: Iterable[Any], external: Any, task: Any
  ) -> dict[str, np.ndarray]:
    """What a program says of each text, in order; nothing of no text."""
    if program not in self.programs:
      self.run(program)
    columns: dict[str, Any] = {} if external is None else {"external": external}
    marked, reads = self.card["place"] == "mark", serving_reads.of(self.card)
    ids, marks = _tokens(texts, self._pieces(), marked, reads)
    if marked:
      columns["mark"] = marks
    if reads.tasks or task is not None:
      columns["task"] = self._numbers(len(ids), task, reads)
    columns = {name: np.asarray(value) for name, value in columns.items()}
    for name, value in columns.items():
      if value.shape[:1] != (len(ids),):
        raise ValueError(
          f"`{name}` must have one row for each of the {len(ids)} texts, got shape "
          f"{value.shape}."
        )
    found, order = [], []
    for chosen, width, size in _batches(ids, reads):
      rows = [*chosen, *[chosen[-1]] * (min(size, _size(len(chosen))) - len(chosen))]
      inputs = np.full((len(rows), width), reads.marks.pad, np.int32)
      for row, number in zip(inputs, rows, strict=True):
        row[: len(ids[number])] = ids[number]
      rest = {name: value[np.array(rows)] for name, value in columns.items()}
      said = self.run(program, inputs=inputs, **rest)
      found.append({name: value[: len(chosen)] for name, value in said.items()})
      order += chosen
    back = np.argsort(np.array(order, np.int32))
    names = found[0] if found else ()
    return {name: np.concatenate([one[name] for one in found])[back] for name in names}


def _batches(ids: Sequence[Sequence[int]], reads: Reads) -> Any:
  """(numbers, positions, rows) of each batch; see `data.lengths`."""
  sizes = [len(row) for row in ids]
  most = lengths.bound(MOST, reads.most or 0)

  def fit(numbers: Sequence[int], few: bool) -> int:
    longest = max(1, *(sizes[i] for i in numbers))
    rounds = -(-longest // ROUND)
    return ROUND * (_size(rounds) if few else rounds)

  return lengths.batches(sizes, MOST, fit, lambda rows, width: rows * width**2 <= most)


def _size(rows: int) -> int:
  """The next power of two, so that few sizes of batches are compiled."""
  return 1 << (rows - 1).bit_length()


def _tokens(
  texts: Iterable[Any], pieces: Pieces, marked: bool, reads: Reads
) -> tuple[list[list[int]], np.ndarray]:
  """Ids of each text, and how many of them stand before its mark."""
  if isinstance(texts, str | bytes | Mapping | Set) or not hasattr(texts, "__iter__"):
    raise ValueError(f"`texts` must be a list of texts, got {short(texts)}.")
  ids, marks = [], []
  for i, one in enumerate(texts):
    before, rest = split_mark(reads.text(f"`texts[{i}]`", one))
    if marked and before is None:
      raise ValueError(
        f"`texts[{i}]` holds no {MARK}; this prompt stands where that is written."
      )
    ids.append(reads.whole(pieces.encode(rest)))
    marks.append(-1 if before is None else len(pieces.encode(before)))
  return ids, np.array(marks, np.int32)


def _checked(
  features: Mapping[str, Any], card: Mapping[str, Any]
) -> dict[str, np.ndarray]:
  arguments = card["arguments"]
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
    _check_values(name, value, serving_reads.of(card))
    given[name] = value.astype(dtype)
  return given


def _check_values(name: str, value: np.ndarray, reads: Reads) -> None:
  """Refuses ids and tasks that the model has not, and vectors that are not finite."""
  least, ids = min(reads.marks.pad, 0), reads.ids
  if name == "inputs" and ids and not least <= value.min() <= value.max() < ids:
    raise ValueError(
      f"`inputs` must be ids from {least} to {ids - 1}, got {value.min()} to "
      f"{value.max()}."
    )
  if name == "task" and not 0 <= value.min() <= value.max() < reads.tasks:
    raise ValueError(
      f"`task` must be numbers from 0 to {reads.tasks - 1}, got {value.min()} to "
      f"{value.max()}."
    )
  if value.dtype.kind == "f" and not np.isfinite(value).all():
    raise ValueError(f"`{name}` holds numbers that are not finite.")


def load(folder: str | pathlib.Path) -> Served:
  """Opens an artifact; nothing is compiled yet.

  The card is checked against its own digest and every file against the card's, so that
  files that are damaged or of two artifacts are found here; only regular files of the
  folder are read. A program is code for XLA: load those that you trust, as you would a
  binary.

  Raises:
    ValueError: if it is no artifact, damaged, or not made for this machine's platform.
  """
  folder = pathlib.Path(folder)
  card = serving_card.read(folder)
  platform = export.default_export_platform()
  if platform not in card["platforms"]:
    raise ValueError(
      f"{str(folder)!r} was made for {card['platforms']}, but jax runs on {platform!r} "
      f"here. Export it with --platforms={','.join([*card['platforms'], platform])}."
    )
  try:
    programs = {
      name: serving_files.read_program(folder, name, card) for name in card["programs"]
    }
    pieces = serving_files.read_vocabulary(folder, card.get("vocabulary"))
  except ImportError as error:
    raise ValueError(f"{str(folder)!r} needs a missing library: {error}.") from error
  weights = dict(serving_files.read_weights(folder, card))
  return Served(card, programs, weights, pieces)

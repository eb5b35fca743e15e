"""The card of a serving artifact: all that it must say, each field of its kind.

Artifacts come from strangers. What a card says is compared with the files and the
programs, so that whoever reads a card may rely on it.
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from prompt_tuning.core.folders import current
from prompt_tuning.interop import serving_reads, untrusted
from prompt_tuning.interop.lazy import UnreadableError
from prompt_tuning.interop.untrusted import Stated

FORMAT = "prompt_tuning/serving/1"
KIND = "stablehlo"
CARD = "card.json"
WEIGHTS = "weights.safetensors"
PROGRAM = "{}.jax_export"
# `data.features.PLACES`, which would import more than a server needs.
PLACES = ("front", "after_first", "end", "mark")
# What goes in: dtype and axes, None for a width that the card tells.
ARGUMENTS = {
  "inputs": ("int32", ["b", "t"]),
  "mark": ("int32", ["b"]),
  "external": ("float32", ["b", None]),
  "task": ("int32", ["b"]),
}
# What comes out of each program; beams have an axis of their own.
RESULTS = {
  "generate": {"ids": ("int32", (2, 3)), "log_probability": ("float32", (1, 2))},
  "choose": {"scores": ("float32", (2,))},
  "classify": {"scores": ("float32", (1, 2))},
}
# How a head answers, and what is said of each way.
HEADS = {"label": (), "labels": ("threshold", "separator"), "number": ()}
FLOATS = ("float32", "float16", "bfloat16")
VOCABULARIES = ("bytes", "sentencepiece", "tokenizers")
_COPY = "Copy the whole folder again."


def read(folder: pathlib.Path) -> dict[str, Any]:
  """The card, its own digest and its files checked.

  Raises:
    UnreadableError: if it is no serving artifact, or something in it is missing,
      damaged, or of another kind than an export writes.
  """
  where = str(folder / CARD)
  try:
    card = untrusted.read_object(untrusted.inside(folder, CARD))
  except UnreadableError as error:
    raise UnreadableError(
      f"{str(folder)!r} is no serving artifact: {error} Give the folder that `export "
      f"--to={KIND}` wrote."
    ) from error
  found = card.get("format"), card.get("kind")
  if found != (FORMAT, KIND):
    raise UnreadableError(
      f"{where!r} says the format {found[0]!r} of the kind {found[1]!r}; this version "
      f"reads {FORMAT!r} of the kind {KIND!r}."
    )
  stated = Stated(card, where)
  if stated.text("digest") != digest(card):
    raise UnreadableError(
      f"{where!r} is damaged or was edited: it is not what its own digest says. {_COPY}"
    )
  _check(stated)
  _check_files(folder, stated)
  return card


def digest(card: Mapping[str, Any]) -> str:
  """Of all that a card says but this."""
  rest = {name: value for name, value in card.items() if name != "digest"}
  return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _check(stated: Stated) -> None:
  """Every field that a reader uses."""
  stated.texts("platforms")
  place = stated.text("place", PLACES)
  labels = stated.texts("labels") if stated.has("labels") else None
  arguments = stated.child("arguments")
  _check_names(arguments, ("inputs",), tuple(ARGUMENTS))
  if ("mark" in arguments.fields) != (place == "mark"):
    raise UnreadableError(
      f"{stated.where!r} says the place {place!r}, but the arguments "
      f"{sorted(arguments.fields)}."
    )
  for name in arguments.fields:
    dtype, axes = ARGUMENTS[name]
    _check_array(arguments.child(name), (dtype,), axes)
  _check_programs(stated.child("programs"), labels)
  if ("classify" in stated.fields["programs"]) != stated.has("head"):
    raise UnreadableError(f"{stated.where!r} has a head or its program alone. {_COPY}")
  if stated.has("head"):
    _check_head(stated.child("head"), stated)
  weights = stated.child("weights")
  for name in weights.fields:
    _check_array(weights.child(name), FLOATS)
  if stated.has("vocabulary"):
    held = stated.child("vocabulary")
    if held.text("kind", VOCABULARIES) != "bytes":
      held.need("file", untrusted.is_plain, "a name of a file in the folder")
  if stated.has("reads"):
    serving_reads.check(stated.child("reads"))
  told = stated.has("reads") and stated.child("reads").has("tasks")
  if ("task" in arguments.fields) != told:
    raise UnreadableError(
      f"{stated.where!r} says the arguments {sorted(arguments.fields)}, but its "
      f"reads.tasks says that the prompt tells {'' if told else 'no '}tasks apart."
    )


def _check_head(head: Stated, stated: Stated) -> None:
  kind = head.text("kind", tuple(HEADS))
  scores = stated.fields["programs"]["classify"]["scores"]["shape"]
  if (len(scores) == 1) != (kind == "number"):
    raise UnreadableError(
      f"{head.where!r} says a head of the kind {kind!r} gives scores {scores}. {_COPY}"
    )
  _check_names(head, ("kind", *HEADS[kind]), ("kind", *HEADS[kind]))
  if kind == "labels":
    head.text("separator")
    head.need("threshold", lambda x: type(x) is float and 0 < x < 1, "a share below 1")


def _check_programs(programs: Stated, labels: Sequence[str] | None) -> None:
  # A head may answer alone, where nothing is written.
  needed = () if "classify" in programs.fields else ("generate",)
  _check_names(programs, needed, tuple(RESULTS))
  chooses, headed = (name in programs.fields for name in ("choose", "classify"))
  if chooses != (labels is not None and not headed):
    raise UnreadableError(
      f"{programs.where!r} has the programs {sorted(programs.fields)}, but the labels "
      f"{labels}."
    )
  for name in programs.fields:
    results = programs.child(name)
    _check_names(results, tuple(RESULTS[name]), tuple(RESULTS[name]))
    for key, (dtype, ranks) in RESULTS[name].items():
      axes = _check_array(results.child(key), (dtype,))
      fits = axes[:1] == ["b"] and len(axes) in ranks
      if not fits or (
        len(axes) == 2 and key == "scores" and axes[1:] != [len(labels or ())]
      ):
        raise UnreadableError(
          f"{results.where!r} says {results.at}{key}.shape is {axes}, which is not "
          "what that program gives."
        )


def _check_names(
  stated: Stated, needed: tuple[str, ...], known: tuple[str, ...]
) -> None:
  names = set(stated.fields)
  if not set(needed) <= names <= set(known):
    raise UnreadableError(
      f"{stated.where!r} says {stated.at.rstrip('.')} are {sorted(names)[:8]}; known "
      f"are {list(known)}, and {', '.join(needed)} must be there."
    )


def _check_array(
  stated: Stated, dtypes: Sequence[str], axes: Sequence[Any] | None = None
) -> list[Any]:
  """Checks what is said of an array; returns its axes, sizes or the symbols b, t."""
  stated.text("dtype", dtypes)

  def is_axis(size: Any) -> bool:
    return size in ("b", "t") if isinstance(size, str) else type(size) is int

  def fits(shape: Any) -> bool:
    listed = isinstance(shape, list) and all(map(is_axis, shape))
    if not listed or any(isinstance(size, int) and size < 0 for size in shape):
      return False
    if axes is None:
      return True
    pairs = zip(axes, shape, strict=False)
    same = all(a == b or (a is None and isinstance(b, int)) for a, b in pairs)
    return len(axes) == len(shape) and same

  wanted = "a list of sizes, b or t" if axes is None else f"{axes} (null: a width)"
  return stated.need("shape", fits, wanted)


def _check_files(folder: pathlib.Path, stated: Stated) -> None:
  """Every file that is read has a digest, and every file with one has that digest."""
  listed = stated.child("files")
  needed = [WEIGHTS, *(PROGRAM.format(name) for name in stated.fields["programs"])]
  held = stated.fields.get("vocabulary") or {}
  needed += [held["file"]] if held.get("kind") == "sentencepiece" else []
  for name in needed:
    listed.text(name)
  for name in listed.fields:
    if untrusted.is_plain(name) and not current(folder, name).exists():
      raise UnreadableError(f"{str(folder)!r} lacks {name}. {_COPY}")
    path = untrusted.inside(folder, name)
    with path.open("rb") as file:
      if hashlib.file_digest(file, "sha256").hexdigest() != listed.text(name):
        raise UnreadableError(
          f"{str(path)!r} is damaged or of another artifact: its digest is not that of "
          f"{CARD}. {_COPY}"
        )

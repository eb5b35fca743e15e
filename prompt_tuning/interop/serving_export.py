"""A frozen model with its prompt as programs that run without this library.

An artifact is a folder:

  generate.jax_export   portable StableHLO of `jax.export`: features -> ids
  choose.jax_export     features -> scores of the labels, where labels are given
  weights.safetensors   every weight once, under its name here, in its own dtype
  spiece.model          the vocabulary with its sentinels, or tokenizer.json (none for
                        bytes)
  card.json             what goes in and comes out, platforms, backbone, prompt, digests

Weights are arguments of the programs and no constants in them: both programs share one
copy, on disk and on the device; a compiled program of each new batch size does not hold
another; bfloat16 stays bfloat16; and a program is some hundred kilobytes for a model of
any size, where constants would soon reach the 2 GB that a serialised program may have.
"""

import contextlib
import hashlib
import json
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax import export
from safetensors import flax as safetensors_flax

from prompt_tuning.core import folders
from prompt_tuning.data import tokenizer_files, tokenizer_json, vocabularies
from prompt_tuning.interop import serving_card
from prompt_tuning.interop.serving_card import CARD, PROGRAM, WEIGHTS
from prompt_tuning.interop.serving_files import said
from prompt_tuning.interop.serving_programs import Servable

VOCABULARY = "spiece.model"
# Files of every artifact.
ALWAYS = (CARD, WEIGHTS, PROGRAM.format("generate"))


def lower(made: Servable) -> dict[str, export.Exported]:
  """Every program in StableHLO, for all platforms, its B and T symbols."""
  features = made.symbols()
  weights = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), made.weights)
  found = {}
  with _without_places():
    for name, program in made.programs.items():
      # Unused weights stay arguments, so that all programs take the same.
      jitted = jax.jit(program, keep_unused=True)
      lowered = export.export(jitted, platforms=tuple(made.settings.platforms))
      found[name] = lowered(weights, features)
  return found


@contextlib.contextmanager
def _without_places() -> Iterator[None]:
  """Leaves paths and lines of source files out of what is lowered."""
  name = "jax_traceback_in_locations_limit"
  before = getattr(jax.config, name)
  jax.config.update(name, 0)
  try:
    yield
  finally:
    jax.config.update(name, before)


def interface(made: Servable, programs: Mapping[str, Any]) -> dict[str, Any]:
  """What goes in and comes out, for the card.

  Args:
    made: what is served. programs: name -> results, anything with shapes and dtypes.
  """
  return {
    "arguments": {name: said(leaf) for name, leaf in made.symbols().items()},
    "programs": {
      name: {key: said(leaf) for key, leaf in results.items()}
      for name, results in programs.items()
    },
    "weights": {name: said(leaf) for name, leaf in made.weights.items()},
  }


def vocabulary(held: Any) -> tuple[dict[str, str] | None, bytes | None]:
  """(what the card says of a vocabulary, its file), None for what there is not."""
  if isinstance(held, vocabularies.Bytes):
    return {"kind": "bytes"}, None
  if isinstance(held, vocabularies.SentencePiece):
    return {"kind": "sentencepiece", "file": VOCABULARY}, held.sp_model
  if isinstance(held, tokenizer_json.TokenizerJson):
    said = {"kind": "tokenizers", "file": tokenizer_files.NAME}
    return said, tokenizer_files.content_of(held.path)
  return None, None


def write(folder: str | pathlib.Path, made: Servable) -> None:
  """Writes the artifact.

  What else the folder holds stays; an artifact that was written there is replaced.

  Raises:
    ValueError: if a file that is not ours stands in the way.
  """
  folders.check(folder, owned, ALWAYS)  # before what takes minutes
  lowered = lower(made)
  held, model = vocabulary(made.vocabulary)
  results = {
    name: jax.tree.unflatten(program.out_tree, program.out_avals)
    for name, program in lowered.items()
  }
  with folders.whole_folder(folder, owned, ALWAYS) as aside:
    for name, program in lowered.items():
      (aside / PROGRAM.format(name)).write_bytes(program.serialize())
    safetensors_flax.save_file(made.weights, str(aside / WEIGHTS))
    if model is not None:
      (aside / held["file"]).write_bytes(model)
    card = {"kind": serving_card.KIND, **made.card, "vocabulary": held}
    card |= interface(made, results)
    card["files"] = {path.name: digest(path) for path in sorted(aside.iterdir())}
    write_card(aside, card)


def owned(folder: pathlib.Path) -> list[str]:
  """Files of an artifact that stands in a folder, and may be replaced."""
  try:
    card = serving_card.read(folder)
  except ValueError:
    return []
  return [CARD, *card["files"]]


def digest(path: pathlib.Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def write_card(folder: pathlib.Path, card: Mapping[str, Any]) -> None:
  card = _finite(card)
  card = {**card, "digest": serving_card.digest(card)}
  content = json.dumps(card, indent=2, ensure_ascii=False) + "\n"
  (folder / CARD).write_text(content, encoding="utf-8")


def _finite(value: Any) -> Any:
  """The value with null for what JSON has no number for, such as a loss of NaN."""
  if isinstance(value, Mapping):
    return {key: _finite(inner) for key, inner in value.items()}
  if isinstance(value, (list, tuple)):
    return [_finite(inner) for inner in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value

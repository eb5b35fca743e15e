"""Files of decoders: folders of ours, of Hugging Face, and tensors from elsewhere."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from prompt_tuning.backbones.common import int8
from prompt_tuning.backbones.common.stacking import unrolled
from prompt_tuning.backbones.decoder import files
from prompt_tuning.backbones.decoder.backbone import Decoder
from prompt_tuning.backbones.decoder.config import DecoderConfig
from prompt_tuning.core.folders import current
from prompt_tuning.data import gguf_header
from prompt_tuning.interop import (
  gguf_files,
  hugging_decoder,
  places,
  shards,
  tensor_files,
  untrusted,
)
from prompt_tuning.interop import source as sources
from prompt_tuning.interop.hugging_decoder_config import config_of
from prompt_tuning.interop.lazy import Lazy, UnreadableError
from prompt_tuning.interop.source import Source

NAME = Decoder.family
LOOKED_FOR = (
  "of a decoder, a folder that this library saved, or a Hugging Face folder "
  "(model_type llama, gpt2, opt or gpt_neox), or a GGUF file (llama or gpt2)"
)
MODEL_TYPES = tuple(hugging_decoder.PREFIXES)
FORMAT = files.FORMAT


def open_source(place: Any, expected: Decoder | None = None) -> Source | None:
  """Recognises a decoder; no weights are read. None for what is none.

  Args:
    place: `pathlib.Path` or `epath.Path`. expected: not needed: its files say all.

  Raises:
    ValueError: if it is one, and damaged.
  """
  del expected
  if gguf_header.is_one(place):
    fields, tensors, vocabulary = gguf_files.read(place)
    return open_tensors(place, fields, tensors, vocabulary)
  try:
    fields = untrusted.read_object(current(place, "config.json"))
  except UnreadableError:
    return None
  if fields.get("format") == FORMAT:
    return _own(place, fields)
  if fields.get("model_type") not in MODEL_TYPES:
    return None
  tensors = shards.tensors(place)
  rows = fields.get("vocab_size")
  vocabulary = places.vocabulary(place, rows if type(rows) is int else 0)
  return open_tensors(place, fields, tensors, vocabulary)


def open_tensors(
  place: Any,
  fields: Mapping[str, Any],
  tensors: Mapping[str, Lazy],
  vocabulary: Any = None,
) -> Source:
  """A decoder of Hugging Face's names, whatever file they come from; none is read.

  Args:
    place: what the user gave, for messages.
    fields: of a config.json.
    tensors: Hugging Face's name -> array, in the layout of its files: [out in], but
      [in out] for the Conv1D of a GPT-2.
    vocabulary: as `families.Opened` has it.

  Raises:
    UnreadableError: for another architecture, or weights that are not those that the
      fields describe.
  """
  where, kind = str(place), fields.get("model_type")
  if kind not in MODEL_TYPES:
    raise UnreadableError(
      f"{where!r} says model_type {kind!r}; this library's decoders are {MODEL_TYPES}."
    )
  config = config_of(kind, fields, where)
  arrays = hugging_decoder.arrays(kind, config, tensors, where)
  return Source(place, config, arrays, vocabulary=vocabulary, family=Decoder)


def _own(place: Any, fields: dict[str, Any]) -> Source:
  path = current(place, "config.json")
  stated = {name: value for name, value in fields.items() if name != "format"}
  known = {field.name for field in dataclasses.fields(DecoderConfig)}
  unknown = sorted(set(stated) - known)
  if unknown:
    raise UnreadableError(f"{str(path)!r} says {', '.join(unknown)}, which is unknown.")
  try:
    config = DecoderConfig(**stated)
  except (TypeError, ValueError) as error:
    raise UnreadableError(f"{str(path)!r}: {error}") from error
  arrays = tensor_files.tensors(current(place, files.WEIGHTS))
  vocabulary = places.vocabulary(place, config.vocab_size)
  return Source(place, config, arrays, vocabulary=vocabulary, family=Decoder)


def load(
  opened: Source, expected: Decoder | None, shardings: Any, dtype: Any
) -> tuple[Decoder, Any]:
  """See `interop.source.load`."""
  return sources.load(opened, expected, shardings, dtype)


def narrowed(backbone: Decoder, params: Any) -> tuple[Any, Any]:
  """Drawn weights as int8, and the arrays that they were."""
  del backbone
  return int8.tree(params), unrolled(jax.device_get(params))


def fingerprint(params: Any) -> str:
  """See `backbones.common.stored.fingerprint`."""
  return files.fingerprint(params)


def digest(arrays: Mapping[str, Any]) -> str:
  """See `backbones.common.stored.digest`."""
  return files.digest(arrays)

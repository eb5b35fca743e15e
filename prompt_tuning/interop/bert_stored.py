"""An encoder of the BERT family on disk, whatever its format, read lazily."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax

from prompt_tuning.backbones.bert import files
from prompt_tuning.backbones.bert.backbone import Bert
from prompt_tuning.backbones.bert.config import BertConfig
from prompt_tuning.backbones.common.stored import check_names
from prompt_tuning.core.context import Spec
from prompt_tuning.core.folders import current
from prompt_tuning.interop import places, placing, tensor_files, untrusted
from prompt_tuning.interop.lazy import Lazy, UnreadableError


@dataclasses.dataclass(frozen=True)
class Stored:
  """Attributes:
  path: what the user gave. config: the architecture, read from the files.
  arrays: our name -> array, layers unrolled.
  vocabulary: the tokeniser's file, or None where none lies beside the weights.
  """

  path: Any
  config: BertConfig
  arrays: Mapping[str, Lazy]
  vocabulary: str | None = None

  @property
  def spec(self) -> Spec:
    """Of the backbone that it holds."""
    return Bert(self.config).spec


def load(
  stored: Stored, expected: Bert | None, shardings: Any, dtype: Any
) -> tuple[Bert, Any]:
  """(backbone, weights); arguments and errors are those of `interop.source.load`."""
  backbone = files.fitting(stored.config, expected, str(stored.path))
  if dtype is None:
    dtype = backbone.config.weights_dtype
  else:
    dtype = dataclasses.replace(backbone.config, weights_dtype=dtype).weights_dtype
  check_names(_shapes(stored.config), dict(stored.arrays), str(stored.path))
  stacks = {"encoder": stored.config.num_layers} if backbone.config.scan_layers else {}
  given = stored.path, stacks, backbone, shardings, dtype
  return backbone, placing.load(stored.arrays, *given)


@functools.lru_cache(maxsize=8)
def _shapes(config: BertConfig) -> dict[str, jax.ShapeDtypeStruct]:
  return placing.unrolled_shapes(Bert(config))


def is_own(folder: Any) -> bool:
  """Whether a folder holds a config.json that says this library saved it."""
  try:
    fields = untrusted.read_object(current(folder, "config.json"))
  except UnreadableError:
    return False
  return fields.get("format") == files.FORMAT


def open_own(folder: Any) -> Stored:
  """Reads the configuration and the names; no weights.

  Raises:
    UnreadableError: if the files do not fit each other.
  """
  path = current(folder, "config.json")
  fields = untrusted.read_object(path)
  fields.pop("format", None)
  try:
    config = BertConfig(**fields)
  except (TypeError, ValueError) as error:
    raise UnreadableError(f"{str(path)!r}: {error}") from error
  arrays = tensor_files.tensors(current(folder, files.WEIGHTS))
  return Stored(folder, config, arrays, places.vocabulary(folder, config.vocab_size))

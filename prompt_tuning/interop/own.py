"""Folders that this library saved (`backbones.t5.files`), read lazily."""

import dataclasses
from typing import Any

from prompt_tuning.backbones.t5 import files
from prompt_tuning.core.folders import current
from prompt_tuning.interop import places, tensor_files, untrusted
from prompt_tuning.interop.lazy import UnreadableError
from prompt_tuning.interop.source import Source, config_of


def recognises(folder: Any) -> bool:
  """Whether a folder holds a config.json that says it is one."""
  try:
    fields = untrusted.read_object(current(folder, "config.json"))
  except UnreadableError:
    return False
  return fields.get("format") == files.FORMAT


def open_source(folder: Any) -> Source:
  """Reads the configuration and the names; no weights.

  Args:
    folder: `pathlib.Path` or `epath.Path`.

  Raises:
    UnreadableError: if it is no such folder, or its files do not fit each other.
  """
  path = current(folder, "config.json")
  fields = untrusted.read_object(path)
  if fields.pop("format", None) != files.FORMAT:
    raise UnreadableError(
      f'{str(path)!r} does not say "format": "{files.FORMAT}", so it is not a folder '
      "that this library saved."
    )
  arrays = tensor_files.tensors(current(folder, files.WEIGHTS))
  shapes = {name: lazy.shape for name, lazy in arrays.items()}
  found = config_of(shapes, str(folder), fields.get("relative_max_distance", 128))
  kinds = fields.get("mlp_activations", found.mlp_activations)
  try:
    config = dataclasses.replace(found, mlp_activations=kinds)
  except (TypeError, ValueError) as error:
    raise UnreadableError(f"{str(path)!r}: {error}") from error
  stated = config.to_json()
  differ = [
    f"{name}: {fields.get(name)!r} in config.json, {ours!r} in the weights"
    for name, ours in stated.items()
    if fields.get(name, ours) != ours
  ]
  differ += [f"{name} is unknown" for name in sorted(set(fields) - set(stated))]
  if len(config.mlp_activations) != len(found.mlp_activations):
    differ.append(f"mlp_activations: {kinds!r} in config.json")
  if differ:
    raise UnreadableError(
      f"config.json and weights of {str(folder)!r} are not of one backbone: "
      f"{'; '.join(differ)}. Copy both from the same folder."
    )
  vocabulary = places.vocabulary(folder, config.vocab_size)
  return Source(folder, config, arrays, vocabulary=vocabulary)

"""What the files of all families share: a folder of ours, and what must fit.

config.json says the architecture; model.safetensors holds tensors under the names of
the backbone's tree, joined by "/", layers unrolled. Safetensors holds no code.
"""

import hashlib
import json
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import flax as safetensors_flax

from prompt_tuning.backbones.common import int8
from prompt_tuning.backbones.common.stacking import unrolled, unstack_layers
from prompt_tuning.core.folders import whole_folder
from prompt_tuning.core.trainable import flatten

WEIGHTS = "model.safetensors"


def save(
  folder: str | pathlib.Path,
  owned: Any,
  fields: Mapping[str, Any],
  params: Any,
  beside: Mapping[str, str | pathlib.Path],
  dtype: Any = None,
) -> None:
  """Writes a backbone (unrolled layers), whole or not at all.

  Args:
    folder: see `core.folders.whole_folder`. owned: what may be replaced there.
    fields: of config.json. params: the weights.
    beside: name -> file to copy beside them.
    dtype: cast the weights to; None keeps theirs.

  Raises:
    ValueError: for weights held as int8, or files in the way that are not ours.
  """
  int8.refuse(params, f"Saving to {str(folder)!r}")
  weights = flatten(unstack_layers(params))
  if dtype is not None:
    weights = {name: jnp.asarray(value, dtype) for name, value in weights.items()}
  with whole_folder(folder, owned, ["config.json", WEIGHTS]) as aside:
    text = json.dumps(dict(fields), indent=2)
    (aside / "config.json").write_text(text + "\n")
    safetensors_flax.save_file(weights, str(aside / WEIGHTS))
    for name, file in beside.items():
      shutil.copyfile(file, aside / name)


def fitting(found: Any, expected: Any, where: str) -> Any:
  """The backbone to build: `expected`, whose architecture must be that of the files.

  Args:
    found: of the files. expected: bound elsewhere, or None. where: the files are.

  Raises:
    ValueError: naming each field that differs.
  """
  if expected is None:
    return found
  ours, theirs = expected.architecture, found.architecture
  differ = [
    f"{k}: {ours[k]} is bound, {theirs[k]} is in the folder"
    for k in ours
    if ours[k] != theirs[k]
  ]
  if differ:
    raise ValueError(
      f"`BACKBONE` does not fit {where!r}: {'; '.join(differ)}. Include the "
      "backbone's own gin file, or leave BACKBONE unset to read it from the folder."
    )
  return expected


def check_names(expected: dict[str, Any], found: dict[str, Any], where: str) -> None:
  """Raises ValueError naming every missing, unknown or misshapen parameter."""
  problems: list[str] = []

  def report(kind: str, names: Sequence[str]) -> None:
    if names:
      problems.append(f"{kind} {len(names)}: {', '.join(names)}")

  report("lacks", sorted(set(expected) - set(found)))
  report("adds", sorted(set(found) - set(expected)))
  report(
    "has other shapes for",
    [
      f"{name} {tuple(found[name].shape)} instead of {tuple(expected[name].shape)}"
      for name in sorted(set(expected) & set(found))
      if tuple(found[name].shape) != tuple(expected[name].shape)
    ],
  )
  if problems:
    raise ValueError(
      f"The checkpoint {where!r} does not fit: it {'; it '.join(problems)}."
      " Name the checkpoint's own architecture."
    )


def fingerprint(params: Any) -> str:
  """A short digest of a backbone's weights, see `digest`."""
  return digest(unrolled(params))


def digest(arrays: Mapping[str, Any]) -> str:
  """A short digest of named arrays: names, shapes and a sketch of values.

  Args:
    arrays: unrolled T5X name -> what `read()` gives the array of.

  Every array contributes its bytes' digest in bfloat16-rounded form, so a stored copy
  in bfloat16 and the same weights held in float32 agree.
  """
  digest = hashlib.sha256()
  for name, leaf in sorted(arrays.items()):
    value = np.asarray(jax.device_get(leaf.read())).astype(jnp.bfloat16)
    digest.update(f"{name}{value.shape}".encode())
    digest.update(np.ascontiguousarray(value).view(np.uint16))
  return digest.hexdigest()[:16]

"""This library's own folder of a T5: config.json, model.safetensors, spiece.model.

Tensors carry T5X's names, joined by "/". Safetensors holds no code. `interop.own` reads
these folders, as lazily as those of other libraries.
"""

import dataclasses
import json
import pathlib
import shutil
from typing import Any

import jax.numpy as jnp
from safetensors import flax as safetensors_flax

from prompt_tuning.backbones.common import int8
from prompt_tuning.backbones.common.stored import check_names as check_names
from prompt_tuning.backbones.common.stored import digest as digest
from prompt_tuning.backbones.common.stored import fingerprint as fingerprint
from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.backbones.t5.config import T5Config
from prompt_tuning.backbones.t5.stacking import unstack_layers
from prompt_tuning.core.folders import stated, whole_folder
from prompt_tuning.core.trainable import flatten

FORMAT = "prompt_tuning/t5"
VOCABULARY = "spiece.model"
WEIGHTS = "model.safetensors"
# What stands in a folder that this library saved, and may be replaced.
OWNED = stated("config.json", {"format": FORMAT}, [WEIGHTS, VOCABULARY])


def save(
  folder: str | pathlib.Path,
  backbone: T5,
  params: Any,
  vocabulary: str | pathlib.Path | None = None,
  dtype: Any = None,
) -> None:
  """Writes a backbone (unrolled layers), whole or not at all.

  Args:
    folder: made if it does not exist; what else it holds stays, and a backbone that
      was saved there before is replaced.
    backbone: the architecture. params: its weights.
    vocabulary: SentencePiece file to put beside the weights.
    dtype: cast the weights (bfloat16 halves the file and rounds to 8 bits).

  Raises:
    ValueError: for weights held as int8, or files in the way that are not ours.
  """
  int8.refuse(params, f"Saving to {str(folder)!r}")
  config = dataclasses.replace(backbone.config, scan_layers=False)
  weights = flatten(unstack_layers(params))
  if dtype is not None:
    weights = {name: jnp.asarray(value, dtype) for name, value in weights.items()}
  with whole_folder(folder, OWNED, ["config.json", WEIGHTS]) as aside:
    text = json.dumps({"format": FORMAT, **config.to_json()}, indent=2)
    (aside / "config.json").write_text(text + "\n")
    safetensors_flax.save_file(weights, str(aside / WEIGHTS))
    if vocabulary is not None:
      shutil.copyfile(vocabulary, aside / VOCABULARY)


def fitting(config: T5Config, expected: T5 | None, where: str) -> T5:
  """The backbone to build: `expected`, whose architecture must be that of the files.

  Raises:
    ValueError: naming each field that differs.
  """
  if expected is None:
    return T5(config)
  ours, theirs = expected.config.to_json(), config.to_json()
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

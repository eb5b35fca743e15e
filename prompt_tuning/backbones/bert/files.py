"""This library's own folder of a BERT: config.json, model.safetensors, its tokeniser.

Tensors carry the names of the parameter tree, joined by "/", layers unrolled.
"""

import dataclasses
import json
import pathlib
import shutil
from typing import Any

import jax.numpy as jnp
from safetensors import flax as safetensors_flax

from prompt_tuning.backbones.bert.backbone import Bert
from prompt_tuning.backbones.bert.config import BertConfig
from prompt_tuning.backbones.common import int8
from prompt_tuning.backbones.common.stacking import unstack_layers
from prompt_tuning.core.folders import stated, whole_folder
from prompt_tuning.core.trainable import flatten

FORMAT = "prompt_tuning/bert"
WEIGHTS = "model.safetensors"
# A tokeniser's file, and what may lie beside it and says more of it.
TOKENISERS = ("tokenizer.json", "vocab.txt")
BESIDE = ("tokenizer_config.json", "special_tokens_map.json")
OWNED = stated("config.json", {"format": FORMAT}, [WEIGHTS, *TOKENISERS, *BESIDE])


def save(
  folder: str | pathlib.Path,
  backbone: Bert,
  params: Any,
  vocabulary: str | pathlib.Path | None = None,
  dtype: Any = None,
) -> None:
  """Writes a backbone (unrolled layers), whole or not at all.

  Args:
    folder: made if it does not exist; what else it holds stays, and a backbone that
      was saved there before is replaced.
    backbone: the architecture. params: its weights.
    vocabulary: tokenizer.json or vocab.txt to put beside the weights.
    dtype: cast the weights (bfloat16 halves the file and rounds to 8 bits).

  Raises:
    ValueError: for weights held as int8, or files in the way that are not ours.
  """
  int8.refuse(params, f"Saving to {str(folder)!r}")
  weights = flatten(unstack_layers(params))
  if dtype is not None:
    weights = {name: jnp.asarray(value, dtype) for name, value in weights.items()}
  with whole_folder(folder, OWNED, ["config.json", WEIGHTS]) as aside:
    fields = {"format": FORMAT, **backbone.config.to_json()}
    text = json.dumps(fields, indent=2) + "\n"
    (aside / "config.json").write_text(text, encoding="utf-8")
    safetensors_flax.save_file(weights, str(aside / WEIGHTS))
    if vocabulary is not None:
      _copy(aside, pathlib.Path(vocabulary))


def _copy(aside: pathlib.Path, vocabulary: pathlib.Path) -> None:
  name = vocabulary.name if vocabulary.name in TOKENISERS else TOKENISERS[0]
  shutil.copyfile(vocabulary, aside / name)
  for name in BESIDE:
    if (vocabulary.parent / name).is_file():
      shutil.copyfile(vocabulary.parent / name, aside / name)


def fitting(config: BertConfig, expected: Bert | None, where: str) -> Bert:
  """The backbone to build: `expected`, whose architecture must be that of the files.

  A pooler or a head of masked words that only the files hold, or that nobody bound, is
  no difference: what is there is read.

  Raises:
    ValueError: naming each field that differs.
  """
  if expected is None:
    return Bert(config)
  held = {"pooler": config.pooler, "mlm_head": config.mlm_head}
  bound = dataclasses.replace(expected.config, **held)
  ours, theirs = bound.to_json(), config.to_json()
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
  return Bert(bound)

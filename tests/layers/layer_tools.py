"""Prompts in the layers of a tiny T5, and plain concatenation to hold them against."""

import dataclasses
import functools
import os

import jax
import jax.numpy as jnp
import method_tools as tools
import numpy as np
import pytest
import test_places as plain

from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.backbones.t5.stacking import stack_layers
from prompt_tuning.conditions.pooled import Embeddings
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.core.places import AtLayers
from prompt_tuning.core.prompt import Prompt, Together
from prompt_tuning.data.features import Layout, pad
from prompt_tuning.inits import uniform
from prompt_tuning.parameterisers import states as words
from prompt_tuning.parameterisers.dense import Dense
from prompt_tuning.parameterisers.mlp import Bottleneck

# T and U count reserved positions: all cases then share what they compile.
H, B, P, T, U = 12, plain.B, 3, 15, 13
# Deep enough for layers before, at and behind the first one.
CONFIG = dataclasses.replace(
  plain.CONFIG, num_encoder_layers=4, num_decoder_layers=3, dropout_rate=0.0
)
BACKBONE = T5(CONFIG)
PARAMS = tools.random_params(BACKBONE.shapes())
SCANNED = T5(dataclasses.replace(CONFIG, scan_layers=True))
BOTH = pytest.mark.parametrize(
  "backbone", [BACKBONE, SCANNED], ids=["unrolled", "scanned"]
)
WIDTH = 5


def weights(backbone):
  scanned = backbone.config.scan_layers
  return stack_layers(PARAMS, backbone.config) if scanned else PARAMS


def table(side="encoder", length=P, **options):
  site = AtLayers(f"{side}.layers", **options)
  return Prompt(length, Dense(uniform.normal()), site)


def reader(word, length=P, **options):
  return Prompt(length, word, AtLayers(**options))


POOLED = words.Pooled(WIDTH, prompt_dropout_rate=0.0)
AVERAGE = words.Segments(WIDTH, "average", prompt_dropout_rate=0.0)
MAXIMUM = words.Segments(WIDTH, "maximum", prompt_dropout_rate=0.0)
INPUT = Prompt(2, Dense(uniform.normal()), "encoder.input")
OUTPUT = Prompt(2, Dense(uniform.normal()), "decoder.input")
PREFIX = Prompt(2, Dense(uniform.normal()), "decoder.kv")
CASES = {
  "deep": table(),
  "from 2": table(first=2),
  "add": table(add=True),
  "add from 1": table(first=1, add=True),
  "late": table(first=None, once=True),
  "last": table(first=3, once=True),
  "decoder": table("decoder"),
  "decoder add from 1": table("decoder", first=1, add=True),
  "decoder late": table("decoder", first=2, once=True),
  "beside an input": Together((INPUT, table(first=2, once=True))),
  "latest first": Together(
    (table(first=3, once=True, length=2), table(first=1, add=True), INPUT)
  ),
  "beside all of the decoder": Together(
    (table("decoder", first=1, once=True), OUTPUT, PREFIX, table("decoder", add=True))
  ),
  "npg": reader(POOLED, first=2, once=True),
  "appg": reader(AVERAGE, first=2, once=True),
  "mppg": reader(MAXIMUM, first=1, once=True),
  "m": reader(POOLED, first=0, add=True),
  "m from 1": reader(POOLED, first=1),
  "generated": Prompt(P, Bottleneck(WIDTH), AtLayers(first=1), Embeddings()),
  "reader beside table": Together((reader(POOLED, first=2, once=True), table())),
  "mixed": Together(
    (
      reader(MAXIMUM, first=3, once=True, length=2),
      reader(AVERAGE, first=2, once=True),
      reader(POOLED, first=1, add=True),
      table("decoder", first=1, once=True),
    )
  ),
}
THOROUGH = bool(os.environ.get("PROMPT_TUNING_THOROUGH"))


@functools.cache
def drawn(name):
  model = PromptedModel(BACKBONE, CASES[name])
  shapes = model.prompt_shapes(PARAMS)
  return tools.random_params(shapes, 0.6, salt=name)


def layout_of(model, more=0):
  lengths = [model.lengths.get(side, 0) for side in ("encoder", "decoder")]
  return Layout(T - lengths[0] + more, U - lengths[1], *lengths)


def batch_of(model, rows=plain.EXAMPLES, more=0):
  layout = layout_of(model, more)
  rows = [pad(layout.convert(row), layout.lengths) for row in rows]
  return {k: jnp.asarray(np.stack([row[k] for row in rows])) for k in rows[0]}


def run(name, backbone=BACKBONE, prompt=None, params=None, batch=None):
  """Logits [B U V] of the text alone."""
  model = PromptedModel(backbone, prompt or CASES[name])
  params = drawn(name) if params is None else params
  batch = batch_of(model) if batch is None else batch
  found = model.logits({"backbone": weights(backbone), "prompt": params}, batch)
  return np.asarray(found)[:, model.lengths.get("decoder", 0) :]


def real(logits):
  """Those of real targets, one behind the other."""
  rows = zip(logits, plain.EXAMPLES, strict=True)
  return np.concatenate([row[: len(one["targets"])] for row, one in rows])


# ---- the oracle: prompts are put in by concatenation, where they come in


class Plain(plain.Plain):
  """The oracle of places on this file's backbone; a reader is asked in numpy."""

  def placed(self, parts, layer, x):
    before = sum(part.length for part in parts if part.first < layer)
    front = self.held.get("encoder.input", ())
    text = x[before + len(front) :]
    made = []
    for part in parts:
      if part.reader is not None and part.first <= layer:
        own = jax.tree.map(lambda a, p=part: a[layer - p.first], part.reader.own)
        once = part.once and layer > part.first
        rows = np.zeros((1, H)) if once else generated(part, own, text)
        # Only this layer's table is looked at.
        count = 1 if part.once else layer - part.first + 1
        part = part.replace(tables=np.stack([rows] * count)[None])
      made.append(part)
    return super().placed(made, layer, x)


def unit(x):
  return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6)


def generated(part, own, text):
  """What a generator makes of the states of one text [T H]."""
  shared = jax.tree.map(lambda x: np.asarray(x, np.float64), part.reader.shared)
  down, up = ((shared[f"{x}_kernel"], shared.get(f"{x}_bias")) for x in ("down", "up"))
  if isinstance(part.reader.make, words.MakePooled):
    hidden = np.maximum(unit(text.mean(0)) @ down[0] + down[1], 0)
    return (hidden @ up[0]).reshape(-1, H) + np.asarray(own["up_bias"])
  q, size, rows = unit(text) @ down[0] + down[1], len(text), []
  pool = np.mean if part.reader.make.pool == "average" else np.max
  for p in range(part.length):
    first, end = p * size // part.length, -(-(p + 1) * size // part.length)
    rows.append(pool(q[first:end], axis=0))
  return np.maximum(rows, 0) @ up[0] + up[1]


def on_this_backbone(patch):
  """The oracle of places then reads this file's weights."""
  wide = jax.tree.map(lambda x: np.asarray(x, np.float64), PARAMS)
  patch.setattr(plain, "CONFIG", CONFIG)
  patch.setattr(plain, "WEIGHTS", wide)


@functools.cache
def wanted(name):
  model = PromptedModel(BACKBONE, CASES[name])
  params = {"backbone": PARAMS, "prompt": drawn(name)}
  found = model.inject(params, batch_of(model))
  with pytest.MonkeyPatch.context() as patch:
    on_this_backbone(patch)
    return np.concatenate([Plain(found, row).logits() for row in range(B)])

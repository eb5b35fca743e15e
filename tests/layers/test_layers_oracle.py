"""Prompts in the layers against plain concatenation."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import method_tools as tools
import numpy as np
import pytest
import test_places as plain
from layer_tools import (
  BACKBONE,
  BOTH,
  CASES,
  CONFIG,
  PARAMS,
  SCANNED,
  THOROUGH,
  B,
  batch_of,
  drawn,
  layout_of,
  real,
  run,
  wanted,
  weights,
)

from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.core.trainable import flatten
from prompt_tuning.data.packing import pack
from prompt_tuning.decoding import decode
from prompt_tuning.outputs.text import Greedy

REMAT = T5(dataclasses.replace(CONFIG, remat_policy="full"))
# Together these hold every kind of part.
CHOSEN = ["latest first", "beside all of the decoder", "mixed"]
SCANS = CHOSEN[1:]
if THOROUGH:
  CHOSEN = SCANS = list(CASES)


# The walks that are compared with unrolled layers.
WALKS = {"scanned": SCANNED, "recomputed": REMAT}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHOSEN)
def test_plain_concatenation(name):
  tools.assert_close(real(run(name)), wanted(name), 3e-5)


@pytest.mark.parametrize("name", SCANS)
def test_scanned_layers(name):
  tools.assert_close(real(run(name, SCANNED)), wanted(name), 3e-5)


@pytest.mark.parametrize("name", CASES if THOROUGH else ["generated", "mixed"])
def test_packed_rows(name):
  """Each example of a row has its own prompt, made of its own states alone."""
  model = PromptedModel(BACKBONE, CASES[name], segments=3)
  layout = layout_of(model)
  rows = list(pack([layout.convert(row) for row in plain.EXAMPLES], 40, 20, 3))
  assert len(rows) < B
  batch = {k: jnp.asarray(np.stack([row[k] for row in rows])) for k in rows[0]}
  params = {"backbone": PARAMS, "prompt": drawn(name)}
  found = np.asarray(jax.jit(model.logits)(params, batch))
  alone, left = run(name), set(range(B))
  for b, s in np.ndindex(len(rows), 3):
    text = (rows[b]["segment_ids"] == s + 1) & (rows[b]["prompt_index"] < 0)
    for number, row in enumerate(plain.EXAMPLES):
      if np.array_equal(rows[b]["inputs"][text], row["inputs"]):
        mine = rows[b]["decoder_segment_ids"] == s + 1
        mine &= rows[b]["decoder_prompt_index"] < 0
        tools.assert_close(found[b][mine], alone[number, : mine.sum()], 3e-5)
        left.remove(number)
  assert not left


@BOTH
def test_decoding_equals_reading_the_whole_target(backbone):
  """The cache keeps keys of slots that lower layers must not see."""
  name = "beside all of the decoder"
  model = PromptedModel(backbone, CASES[name])
  params = {"backbone": weights(backbone), "prompt": drawn(name)}
  batch = batch_of(model)
  steps = jax.jit(
    lambda params, batch: decode.generate(model, params, batch, Greedy(4))
  )
  ids, total = jax.device_get(steps(params, batch))
  rows = [
    {**row, "targets": np.append(own, 1).astype(np.int32)}
    for row, own in zip(plain.EXAMPLES, ids, strict=True)
  ]
  logits = run(name, backbone, batch=batch_of(model, rows))
  chances = np.asarray(jax.nn.log_softmax(logits))
  for row in range(B):
    end = list(ids[row]).index(1) + 1 if 1 in ids[row] else 4
    np.testing.assert_array_equal(chances[row].argmax(-1)[:end], ids[row][:end])
    said = chances[row, np.arange(end), ids[row][:end]].sum()
    np.testing.assert_allclose(said, total[row], rtol=0, atol=1e-4)


@functools.cache
def gradients(backbone):
  model = PromptedModel(backbone, CASES["mixed"])
  held, batch = weights(backbone), batch_of(model)

  def loss(params):
    logits = model.logits({"backbone": held, "prompt": params}, batch)
    return jnp.square(jax.nn.log_softmax(logits)).mean()

  return jax.jit(jax.grad(loss))(drawn("mixed"))


@pytest.mark.parametrize("walk", WALKS if THOROUGH else ["scanned"])
def test_gradients_of_all_walks(walk):
  """All walks of the layers give one gradient, and every leaf has it."""
  want, found = gradients(BACKBONE), gradients(WALKS[walk])
  for path, leaf in flatten(want).items():
    assert np.abs(leaf).max() > 1e-6, path
    np.testing.assert_allclose(flatten(found)[path], leaf, rtol=0, atol=3e-4)

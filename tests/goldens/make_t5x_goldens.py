"""Makes goldens with T5X's own minimal network and beam search.

  python tests/goldens/make_t5x_goldens.py

Writes t5x_minimal.npz beside this file. Made with T5X of 21 April 2026 (commit
cc342d4), jax 0.10.2 and flax 0.12.8 on a CPU, in float32. Weights come from
`weights.py`; only inputs and outputs are stored. Keys are `<config>/<name>`, configs
being `weights.CONFIGS`:

  inputs, targets, logits            rows of one example each
  segment_ids, target_segment_ids, packed_logits   the same ids, read as packed rows
  beam [B 4 U], beam_scores [B 4]    best first, by T5X's beam search (alpha 0.6)
"""

import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import weights
from t5x import decoding, models
from t5x.examples.t5 import network

HERE = pathlib.Path(__file__).parent
LENGTHS, TARGET_LENGTHS = (9, 4, 7), (6, 3, 5)
NEW_TOKENS, BEAMS, ALPHA = 7, 4, 0.6


def main() -> None:
  found = {}
  for name, config in weights.CONFIGS.items():
    params = weights.nested(weights.tiny_weights(name))
    module = network.Transformer(network.T5Config(**config, dropout_rate=0.0))
    for key, value in run(module, params, config["vocab_size"]).items():
      found[f"{name}/{key}"] = np.asarray(value)
  np.savez_compressed(HERE / "t5x_minimal.npz", **found)


def run(module: nn.Module, params: dict, V: int) -> dict:
  inputs = ragged(np.random.RandomState(11), LENGTHS, V)
  targets = ragged(np.random.RandomState(12), TARGET_LENGTHS, V)
  shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
  segments = np.where(inputs > 0, 1 + (np.arange(inputs.shape[1]) >= 3), 0)
  target_segments = np.where(targets > 0, 1 + (np.arange(targets.shape[1]) >= 2), 0)

  def logits(**packing):
    arguments = inputs, shifted, targets
    return module.apply({"params": params}, *arguments, enable_dropout=False, **packing)

  return {
    "inputs": inputs,
    "targets": targets,
    "logits": logits(),
    "segment_ids": segments,
    "target_segment_ids": target_segments,
    "packed_logits": logits(
      encoder_segment_ids=segments, decoder_segment_ids=target_segments
    ),
    **search(module, params, inputs),
  }


class Vocabulary:
  """All that T5X's model asks of a vocabulary."""

  eos_id = 1


def search(module: nn.Module, params: dict, inputs: np.ndarray) -> dict:
  """Beams best first; T5X gives them worst first and divides log-probabilities."""
  model = models.EncoderDecoderModel(
    module, Vocabulary(), Vocabulary(), None, decoding.beam_search
  )
  blank = jnp.zeros((len(inputs), NEW_TOKENS), jnp.int32)
  batch = {"encoder_input_tokens": jnp.asarray(inputs), "decoder_input_tokens": blank}
  ids, aux = jax.jit(
    lambda batch: model.predict_batch_with_aux(
      params,
      batch,
      decoder_params={"alpha": ALPHA},
      return_all_decodes=True,
      num_decodes=BEAMS,
    )
  )(batch)
  ids, scores = np.asarray(ids)[:, ::-1], np.asarray(aux["scores"])[:, ::-1]
  return {"beam": ids, "beam_scores": scores}


def ragged(random: np.random.RandomState, lengths: tuple, V: int) -> np.ndarray:
  """Random ids >= 2 of these lengths that end in 1, padded with 0 on the right."""
  ids = np.zeros((len(lengths), max(lengths)), np.int32)
  for row, length in enumerate(lengths):
    ids[row, :length] = np.append(random.randint(2, V, length - 1), 1)
  return ids


if __name__ == "__main__":
  main()

"""Makes the T5 goldens with PyTorch and Hugging Face Transformers.

  python tests/goldens/make_t5_goldens.py

Writes t5_forward.npz (logits, losses, input gradients, position buckets) and
t5_generate.npz (greedy and beam search) beside this file. Made with torch 2.13.0 and
transformers 5.23.0 on a CPU, in float32. Weights come from `weights.py`; only inputs
and outputs are stored. Keys are `<config>/<name>`, configs being `weights.CONFIGS`:

  t5_forward    inputs, targets, logits, loss, input_gradient; without a config:
                distances, encoder_buckets, decoder_buckets
  t5_generate   inputs, greedy [B U], beam and beam_early [B 4 U] with their _scores
                [B 4]: sums of log-probabilities, each divided by the tokens generated,
                the end mark counted; `early` is `early_stopping=True`
"""

import pathlib

import numpy as np
import torch
import transformers
import weights
from transformers.models.t5.modeling_t5 import T5Attention

HERE = pathlib.Path(__file__).parent
NEW_TOKENS = 12
BEAMS = 4


def main() -> None:
  torch.set_num_threads(1)
  forward, generated = bucket_table(), {}
  for name, config in weights.CONFIGS.items():
    model = hugging_face_model(config, weights.tiny_weights(name))
    for key, value in run_forward(model, config).items():
      forward[f"{name}/{key}"] = value
    for key, value in run_generate(model, config).items():
      generated[f"{name}/{key}"] = value
  np.savez_compressed(HERE / "t5_forward.npz", **forward)
  np.savez_compressed(HERE / "t5_generate.npz", **generated)


def hugging_face_model(config: dict, flat: dict) -> torch.nn.Module:
  """The torch model of T5X weights; refuses a tensor that got no weight."""
  tied = config["logits_via_embedding"]
  model = transformers.T5ForConditionalGeneration(
    transformers.T5Config(
      vocab_size=config["vocab_size"],
      d_model=config["emb_dim"],
      d_kv=config["head_dim"],
      d_ff=config["mlp_dim"],
      num_heads=config["num_heads"],
      num_layers=config["num_encoder_layers"],
      num_decoder_layers=config["num_decoder_layers"],
      feed_forward_proj="relu" if tied else "gated-gelu",
      # Version 5 reads this as "scale the logits" and ties the tables regardless.
      tie_word_embeddings=tied,
      decoder_start_token_id=0,
      attn_implementation="eager",
    )
  ).eval()
  assert model.config.scale_decoder_outputs == tied
  if not tied:
    # The tie is undone by hand: T5 1.1 has logits of its own.
    model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
  tensors = dict(model.named_parameters(remove_duplicate=True))
  for name, value in flat.items():
    target = tensors.pop(torch_name(name))
    transposed = name.endswith(("kernel", "rel_embedding"))
    with torch.no_grad():
      target.copy_(torch.from_numpy(value.T if transposed else value))
  assert not tensors, sorted(tensors)
  assert (model.lm_head.weight is model.shared.weight) == tied
  return model


def torch_name(name: str) -> str:
  """Hugging Face name of a T5X parameter."""
  fixed = {
    "token_embedder/embedding": "shared.weight",
    "decoder/logits_dense/kernel": "lm_head.weight",
    "encoder/encoder_norm/scale": "encoder.final_layer_norm.weight",
    "decoder/decoder_norm/scale": "decoder.final_layer_norm.weight",
  }
  if name in fixed:
    return fixed[name]
  side, layer, part, *rest = name.split("/")
  first = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
  if layer == "relpos_bias":
    return first
  places = {"attention": 0, "self_attention": 0, "encoder_decoder_attention": 1}
  places |= {"cross_attention": 1, "mlp": 1 if side == "encoder" else 2}
  block = f"{side}.block.{layer.removeprefix('layers_')}.layer"
  if part.endswith("layer_norm"):
    kind = part.removeprefix("pre_").removesuffix("_layer_norm")
    return f"{block}.{places[kind]}.layer_norm.weight"
  if part == "mlp":
    return f"{block}.{places[part]}.DenseReluDense.{rest[0]}.weight"
  module = "EncDecAttention" if places[part] else "SelfAttention"
  return f"{block}.{places[part]}.{module}.{rest[0][0]}.weight"


def bucket_table() -> dict[str, np.ndarray]:
  distances = torch.arange(-300, 301)
  tables = {"distances": distances.numpy()}
  for both in (True, False):
    buckets = T5Attention._relative_position_bucket(distances, both, 32, 128)
    tables["encoder_buckets" if both else "decoder_buckets"] = buckets.numpy()
  return tables


def run_forward(model: torch.nn.Module, config: dict) -> dict[str, np.ndarray]:
  """Logits, mean token loss, and its gradient in the encoder's input embeddings."""
  V = config["vocab_size"]
  inputs = ragged(np.random.RandomState(1), (140, 71, 9), V)
  # Targets as long once, so that the decoder's farthest bucket is reached too.
  targets = ragged(np.random.RandomState(2), (7, 134, 30), V)
  embeddings = model.shared(torch.from_numpy(inputs)).detach().requires_grad_()
  out = model(
    inputs_embeds=embeddings,
    attention_mask=torch.from_numpy((inputs > 0).astype(np.int64)),
    labels=torch.from_numpy(np.where(targets > 0, targets, -100)),
  )
  out.loss.backward()
  return {
    "inputs": inputs.astype(np.int32),
    "targets": targets.astype(np.int32),
    "logits": out.logits.detach().numpy(),
    "loss": out.loss.detach().numpy(),
    "input_gradient": embeddings.grad.numpy(),
  }


def run_generate(model: torch.nn.Module, config: dict) -> dict[str, np.ndarray]:
  """Ids without the start token, 0 after the end; scores of beams as HF gives them."""
  lengths = (8, 3, 11, 5, 9, 2, 7, 6)
  inputs = ragged(np.random.RandomState(3), lengths, config["vocab_size"])
  results = {"inputs": inputs.astype(np.int32)}
  greedy = search(model, inputs)
  results["greedy"] = padded(greedy.sequences)
  for early in (False, True):
    out = search(
      model,
      inputs,
      num_beams=BEAMS,
      num_return_sequences=BEAMS,
      length_penalty=1.0,
      early_stopping=early,
    )
    label = "beam_early" if early else "beam"
    ids = padded(out.sequences)
    results[label] = ids.reshape(len(inputs), BEAMS, NEW_TOKENS)
    scores = out.sequences_scores.numpy().reshape(len(inputs), BEAMS)
    results[f"{label}_scores"] = scores
  return results


def search(model: torch.nn.Module, inputs: np.ndarray, **options):
  return model.generate(
    torch.from_numpy(inputs),
    attention_mask=torch.from_numpy((inputs > 0).astype(np.int64)),
    max_new_tokens=NEW_TOKENS,
    do_sample=False,
    output_scores=True,
    return_dict_in_generate=True,
    **options,
  )


def padded(sequences: torch.Tensor) -> np.ndarray:
  """Ids [B U] without the start token; Transformers fills beams with 1, not 0."""
  ids = sequences[:, 1:].numpy().astype(np.int32)
  ids = np.pad(ids, ((0, 0), (0, NEW_TOKENS - ids.shape[1])))
  ended = np.cumsum(ids == 1, axis=-1) - (ids == 1) > 0
  return np.where(ended, 0, ids)


def ragged(random: np.random.RandomState, lengths: tuple, V: int) -> np.ndarray:
  """Random ids >= 2 of these lengths that end in 1, padded with 0 on the right."""
  ids = np.zeros((len(lengths), max(lengths)), np.int64)
  for row, length in enumerate(lengths):
    ids[row, :length] = np.append(random.randint(2, V, length - 1), 1)
  return ids


if __name__ == "__main__":
  main()

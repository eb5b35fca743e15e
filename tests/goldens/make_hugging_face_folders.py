"""Makes folders that transformers saved, and the logits of the models in them.

  python tests/goldens/make_hugging_face_folders.py

Writes hugging_face/<name>/ (config.json, safetensors) and hugging_face/logits.npz
(`inputs`, `targets`, and logits under each name) beside this file. Made with torch
2.13.0 and transformers 5.23.0 on a CPU, in float32.
"""

import pathlib
import shutil

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).parent / "hugging_face"
SIZES = {
  "vocab_size": 32,
  "d_model": 8,
  "d_kv": 4,
  "d_ff": 12,
  "num_layers": 1,
  "num_decoder_layers": 2,
  "num_heads": 3,
  "dropout_rate": 0.0,
  "decoder_start_token_id": 0,
}
GATED = {"feed_forward_proj": "gated-gelu"}
# Version 5 shares the table in any case; False leaves the logits unscaled, and a model
# of its own head has to be given one.
MODELS = {
  "t5_1_0": ("T5", {"feed_forward_proj": "relu"}, "5GB"),
  "t5_1_1": ("T5", {**GATED, "tie_word_embeddings": False}, "5GB"),
  "t5_shared_unscaled": ("T5", {**GATED, "scale_decoder_outputs": False}, "5GB"),
  "mt5_sharded": ("MT5", GATED, "6KB"),
}


def main() -> None:
  torch.manual_seed(0)
  shutil.rmtree(HERE, ignore_errors=True)
  inputs, targets = torch.randint(3, 32, (2, 7)), torch.randint(3, 32, (2, 5))
  found = {"inputs": inputs.numpy(), "targets": targets.numpy()}
  shifted = torch.nn.functional.pad(targets, (1, 0))[:, :-1]
  for name, (family, fields, shard) in MODELS.items():
    config = getattr(transformers, f"{family}Config")(**SIZES, **fields)
    kind = getattr(transformers, f"{family}ForConditionalGeneration")
    model = kind(config)
    with torch.no_grad():
      for value in model.parameters():
        value.copy_(0.4 * torch.randn_like(value))
    model.save_pretrained(HERE / name, max_shard_size=shard)
    (HERE / name / "generation_config.json").unlink()
    again = kind.from_pretrained(HERE / name).eval()
    with torch.no_grad():
      logits = again(input_ids=inputs, decoder_input_ids=shifted).logits
    found[name] = logits.numpy()
  np.savez_compressed(HERE / "logits.npz", **found)


if __name__ == "__main__":
  main()

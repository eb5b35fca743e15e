"""Makes adapters that PEFT saved, and the logits of their models.

  python tests/goldens/make_peft_adapters.py

Writes peft/<name>/ (adapter_config.json, adapter_model.safetensors) and peft/logits.npz
beside this file, over the model of hugging_face/t5_1_0; `multitask` is that of task 1.
`prefix_2` and `prefix_3` stand over models of as many layers, peft/model_2 and _3.
Made with torch 2.13.0, transformers 5.23.0 and peft 0.21.2 on a CPU, in float32.
"""

import json
import pathlib
import shutil

import numpy as np
import peft
import torch
import transformers

HERE = pathlib.Path(__file__).parent
OUT = HERE / "peft"


COMMON = {"task_type": "SEQ_2_SEQ_LM", "num_virtual_tokens": 3}
CONFIGS = {
  "prompt_tuning": lambda: peft.PromptTuningConfig(
    **COMMON, prompt_tuning_init="RANDOM"
  ),
  "p_tuning": lambda: peft.PromptEncoderConfig(**COMMON, encoder_hidden_size=8),
  "multitask": lambda: peft.MultitaskPromptTuningConfig(
    **COMMON, prompt_tuning_init="RANDOM", num_tasks=2, num_ranks=2
  ),
}


def write(name: str, model, config, batch: dict) -> np.ndarray:
  """Writes an adapter with random weights; returns its logits."""
  model = peft.get_peft_model(model, config).eval()
  with torch.no_grad():
    for value in model.parameters():
      if value.requires_grad:
        value.copy_(torch.randn_like(value))
  model.save_pretrained(OUT / name)
  (OUT / name / "README.md").unlink(missing_ok=True)
  file = OUT / name / "adapter_config.json"
  fields = json.loads(file.read_text())
  fields["base_model_name_or_path"] = "t5_1_0"
  file.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
  with torch.no_grad():
    return model(**batch).logits.numpy()


def prefix(layers: int, batch: dict) -> np.ndarray:
  """Writes a model and an adapter with keys and values; returns its logits."""
  config = transformers.T5Config(
    vocab_size=32,
    d_model=8,
    d_kv=4,
    num_heads=2,
    d_ff=12,
    num_layers=layers,
    feed_forward_proj="gated-gelu",
    tie_word_embeddings=False,
    decoder_start_token_id=0,
  )
  model = transformers.T5ForConditionalGeneration(config)
  model.save_pretrained(OUT / f"model_{layers}")
  (OUT / f"model_{layers}" / "generation_config.json").unlink()
  settings = peft.PrefixTuningConfig(**COMMON)
  return write(f"prefix_{layers}", model, settings, batch)


def main() -> None:
  torch.manual_seed(1)
  shutil.rmtree(OUT, ignore_errors=True)
  stored = np.load(HERE / "hugging_face" / "logits.npz")
  batch = {
    "input_ids": torch.tensor(stored["inputs"]),
    "labels": torch.tensor(stored["targets"]),
  }
  found = {}
  for name, config in CONFIGS.items():
    folder = HERE / "hugging_face" / "t5_1_0"
    model = transformers.T5ForConditionalGeneration.from_pretrained(folder)
    task = {"task_ids": torch.tensor([1, 1])} if name == "multitask" else {}
    found[name] = write(name, model, config(), {**batch, **task})
  for layers in (2, 3):
    found[f"prefix_{layers}"] = prefix(layers, batch)
  np.savez_compressed(OUT / "logits.npz", **found)


if __name__ == "__main__":
  main()

"""Hugging Face's side of the benchmarks, a process of its own that takes orders.

Imports torch, transformers and peft, and of ours `worker.py` alone.

The model is `T5ForConditionalGeneration` of T5 1.1 with random weights, as the library
makes it (its attention implementation is stated in the answer); PEFT's prompt is in
front of the encoder alone. The optimiser is torch's own.
"""

import json
from typing import Any

import numpy as np
import worker

try:
  import peft
  import torch
  import transformers
except ImportError as error:
  print(json.dumps({"absent": str(error)}), flush=True)
  raise SystemExit(0) from error

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def base(shape: dict[str, Any]) -> Any:
  """T5 1.1 of a shape with random weights; its tables are apart from the logits."""
  config = transformers.T5Config(
    vocab_size=shape["vocabulary"],
    d_model=shape["width"],
    num_heads=shape["heads"],
    d_kv=shape["head_width"],
    d_ff=shape["ff"],
    num_layers=shape["encoder_layers"],
    num_decoder_layers=shape["decoder_layers"],
    feed_forward_proj="gated-gelu",
    tie_word_embeddings=False,
    dropout_rate=shape["dropout"],
    decoder_start_token_id=0,
    use_cache=False,
  )
  torch.set_default_dtype(getattr(torch, shape["dtype"]))
  with torch.device(DEVICE):
    model = transformers.T5ForConditionalGeneration(config)
  # Version 5 of transformers ties the logits to the token table whatever is asked for.
  model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
  torch.set_default_dtype(torch.float32)
  return model


def prompted(model: Any, length: int) -> Any:
  config = peft.PromptTuningConfig(
    task_type="SEQ_2_SEQ_LM",
    num_virtual_tokens=length,
    num_transformer_submodules=1,
    prompt_tuning_init="RANDOM",
  )
  return peft.get_peft_model(model, config).to(DEVICE)


def rule(name: str, model: Any) -> Any:
  trained = [p for p in model.parameters() if p.requires_grad]
  if name == "adamw":
    return torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)
  return torch.optim.Adafactor(trained, lr=1e-3, weight_decay=0.0)


def read(file: str) -> list[dict[str, Any]]:
  """Batches of a .npz: arrays inputs_0, targets_0, inputs_1 ...; 0 pads."""
  stored, found = np.load(file), []
  for number in range(len(stored.files) // 2):
    inputs = torch.tensor(stored[f"inputs_{number}"], dtype=torch.long, device=DEVICE)
    labels = torch.tensor(stored[f"targets_{number}"], dtype=torch.long, device=DEVICE)
    found.append(
      {
        "input_ids": inputs,
        "attention_mask": (inputs > 0).long(),
        "labels": labels.masked_fill(labels == 0, -100),
      }
    )
  return found


def wait() -> None:
  if DEVICE == "cuda":
    torch.cuda.synchronize()


class Training:
  """Steps of one model on batches taken in turn."""

  def __init__(self, order: dict[str, Any]):
    shape = order["shape"]
    model = base(shape)
    self.parameters = sum(p.numel() for p in model.parameters())
    if order.get("prompted", True):
      model = prompted(model, shape["prompt"])
    self.model = model.train()
    self.optimizer = rule(shape["optimizer"], model)
    self.run = torch.compile(model) if order.get("compile") else model
    self.batches, self.taken = read(order["file"]), 0

  def __call__(self) -> None:
    batch = self.batches[self.taken % len(self.batches)]
    self.taken += 1
    self.run(**batch).loss.backward()
    self.optimizer.step()
    self.optimizer.zero_grad()


class Generation:
  """Decoding of a fixed number of tokens, with the library's cache."""

  def __init__(self, order: dict[str, Any]):
    model = base(order["shape"])
    self.parameters = sum(p.numel() for p in model.parameters())
    self.model = prompted(model, order["shape"]["prompt"]).eval()
    steps = order["steps"]
    (self.batch, *_) = read(order["file"])
    del self.batch["labels"]
    self.settings = {
      "max_new_tokens": steps,
      "min_new_tokens": steps,
      "num_beams": order["beams"],
      "do_sample": False,
      "use_cache": True,
    }

  def __call__(self) -> None:
    with torch.no_grad():
      self.model.generate(**self.batch, **self.settings)


def describe(side: Training | Generation, order: dict[str, Any]) -> dict[str, Any]:
  attention = getattr(side.model.config, "_attn_implementation", None)
  return {"parameters": side.parameters, "attention": attention}


def peak() -> int | None:
  return torch.cuda.max_memory_allocated() if DEVICE == "cuda" else None


if __name__ == "__main__":
  versions = {m.__name__: m.__version__ for m in (torch, transformers, peft)}
  facts = {"versions": versions, "device": DEVICE, "threads": torch.get_num_threads()}
  kinds = {"train": Training, "generate": Generation}
  worker.serve(facts, kinds, describe, wait, peak)

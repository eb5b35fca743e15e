"""Writes goldens of BERT, RoBERTa and XLM-R by Hugging Face's transformers.

  pip install torch transformers
  python tests/goldens/make_bert_goldens.py

Each is a tiny random model, every size different, as the folder that transformers saves
it (config.json, model.safetensors), and `expected.npz`: ids, types, states, pooled
states, logits of masked words, and states behind keys and values in each layer.
"""

import json
import pathlib
from typing import Any

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).resolve().parent
# Three lengths, padded behind; ids from 7 on are words.
LENGTHS = (9, 4, 7)
SIZES = {"hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 20}
SIZES |= {"num_hidden_layers": 2, "attn_implementation": "eager"}
P = 3
BERT = {"vocab_size": 41, "max_position_embeddings": 26, "type_vocab_size": 2}
BERT |= {"pad_token_id": 0, "bos_token_id": 4, "eos_token_id": 5}
ROBERTA = {"vocab_size": 43, "max_position_embeddings": 28, "type_vocab_size": 1}
ROBERTA |= {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
# name -> (class, configuration)
MODELS = {
  "bert": ("BertModel", {**BERT, "layer_norm_eps": 1e-12}),
  "bert_mlm": ("BertForMaskedLM", {**BERT, "hidden_act": "gelu_new"}),
  "bert_classes": ("BertForSequenceClassification", {**BERT, "hidden_act": "relu"}),
  "roberta_mlm": ("RobertaForMaskedLM", {**ROBERTA, "layer_norm_eps": 1e-5}),
  "xlmr": ("XLMRobertaModel", {**ROBERTA, "layer_norm_eps": 1e-5}),
}


def redrawn(model: torch.nn.Module) -> None:
  """Weights that every error shows in: no bias is 0, no norm is 1."""
  torch.manual_seed(3)
  with torch.no_grad():
    for name, value in model.named_parameters():
      centre = 1.0 if "layernorm.weight" in name.lower().replace("_", "") else 0.0
      value.copy_(centre + 0.3 * torch.randn(value.shape))
  model.tie_weights()


def rows(config: transformers.PretrainedConfig) -> dict[str, torch.Tensor]:
  rng, T = np.random.default_rng(5), max(LENGTHS)
  ids = np.full((len(LENGTHS), T), config.pad_token_id)
  for row, length in zip(ids, LENGTHS, strict=True):
    row[0], row[length - 1] = config.bos_token_id, config.eos_token_id
    row[1 : length - 1] = rng.integers(7, config.vocab_size, length - 2)
  mask = np.arange(T)[None] < np.array(LENGTHS)[:, None]
  return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask).long()}


def behind(body: torch.nn.Module, given: dict[str, torch.Tensor]) -> dict[str, Any]:
  """States behind P keys and values a layer, whose places the text begins behind."""
  config = body.config
  B, N = len(LENGTHS), config.num_attention_heads
  shape = 2 * config.num_hidden_layers, N, P, config.hidden_size // N
  drawn = np.random.default_rng(6).normal(size=shape).astype(np.float32)
  cache = transformers.DynamicCache()
  for layer in range(config.num_hidden_layers):
    pair = drawn[2 * layer : 2 * layer + 2]
    key, value = (torch.tensor(x)[None].repeat(B, 1, 1, 1) for x in pair)
    cache.update(key, value, layer)
  mask = torch.cat([torch.ones(B, P).long(), given["attention_mask"]], dim=1)
  first = P if config.model_type == "bert" else P + config.pad_token_id + 1
  places = torch.arange(first, first + max(LENGTHS))[None].repeat(B, 1)
  found = body(
    input_ids=given["input_ids"],
    attention_mask=mask,
    position_ids=places,
    past_key_values=cache,
  )
  # [2L N P D] -> [2L P J]
  flat = drawn.transpose(0, 2, 1, 3).reshape(shape[0], P, -1)
  return {"kv": flat, "behind_kv": found.last_hidden_state}


def golden(name: str, kind: str, fields: dict[str, object]) -> None:
  cls = getattr(transformers, kind)
  model = cls(cls.config_class(**SIZES, **fields)).eval()
  redrawn(model)
  folder = HERE / f"hugging_{name}"
  model.save_pretrained(folder)
  given = rows(model.config)
  body = getattr(model, model.base_model_prefix, model)
  found = body(**given)
  arrays = {"ids": given["input_ids"], "states": found.last_hidden_state}
  if found.pooler_output is not None:
    arrays["pooled"] = found.pooler_output
  if kind.endswith("MaskedLM"):
    arrays["logits"] = model(**given).logits
  if model.config.type_vocab_size > 1:
    types = (torch.arange(max(LENGTHS))[None] >= 3).long().repeat(len(LENGTHS), 1)
    arrays["types"] = types
    arrays["typed"] = body(**given, token_type_ids=types).last_hidden_state
  arrays |= behind(body, given)
  arrays = {
    key: np.asarray(value.detach() if hasattr(value, "detach") else value)
    for key, value in arrays.items()
  }
  np.savez_compressed(folder / "expected.npz", **arrays)
  generation = folder / "generation_config.json"
  if generation.exists():
    generation.unlink()
  said = json.loads((folder / "config.json").read_text())
  print(name, said["architectures"], {k: v.shape for k, v in arrays.items()})


if __name__ == "__main__":
  with torch.no_grad():
    for name, (kind, fields) in MODELS.items():
      golden(name, kind, fields)

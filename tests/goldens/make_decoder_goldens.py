"""Makes folders of tiny decoders that transformers saved, and what the models give.

  python tests/goldens/make_decoder_goldens.py

Writes decoders/NAME/ (config.json, safetensors) and decoders/found.npz beside this
file: `ids` [B X], and of each model logits [B X V], the mean cross-entropy of each next
token, its gradient at the embeddings of the tokens [B X H], and the greedy
continuations of the texts `lengths` says. Made with torch 2.14.1 and transformers
5.24.0 on a CPU, in float32.
"""

import pathlib
import shutil

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).parent / "decoders"
MARKS = {"bos_token_id": 1, "eos_token_id": 2}
# Every size another than the rest.
LLAMA = {
  "vocab_size": 37,
  "hidden_size": 18,
  "num_hidden_layers": 2,
  "num_attention_heads": 6,
  "num_key_value_heads": 2,
  "head_dim": 4,
  "intermediate_size": 20,
  "max_position_embeddings": 64,
  "rms_norm_eps": 1e-5,
  "rope_theta": 500.0,
}
GPT2 = {
  "vocab_size": 37,
  "n_embd": 12,
  "n_layer": 2,
  "n_head": 3,
  "n_inner": 20,
  "n_positions": 33,
}
OPT = {
  "vocab_size": 37,
  "hidden_size": 12,
  "word_embed_proj_dim": 12,
  "num_hidden_layers": 2,
  "num_attention_heads": 3,
  "ffn_dim": 20,
  "max_position_embeddings": 33,
  "pad_token_id": 0,
}
NEOX = {
  "vocab_size": 37,
  "hidden_size": 24,
  "num_hidden_layers": 2,
  "num_attention_heads": 3,
  "intermediate_size": 20,
  "max_position_embeddings": 64,
  "rotary_pct": 0.5,
}
MODELS = {
  "llama_tied": ("Llama", {**LLAMA, "tie_word_embeddings": True}, "5GB"),
  "llama_biased": (
    "Llama",
    {**LLAMA, "num_key_value_heads": 6, "attention_bias": True, "mlp_bias": True},
    "16KB",
  ),
  "gpt2": ("GPT2", GPT2, "5GB"),
  "opt": ("OPT", OPT, "5GB"),
  "neox": ("GPTNeoX", NEOX, "5GB"),
  "neox_sequential": ("GPTNeoX", {**NEOX, "use_parallel_residual": False}, "5GB"),
}
KINDS = {"GPT2": "GPT2LMHeadModel"}
WRITTEN = 6


def main() -> None:
  torch.manual_seed(0)
  shutil.rmtree(HERE, ignore_errors=True)
  ids, lengths = torch.randint(3, 37, (3, 9)), [9, 5, 1]
  found = {"ids": ids.numpy(), "lengths": np.array(lengths)}
  for name, (family, fields, shard) in MODELS.items():
    config = getattr(transformers, f"{family}Config")(**fields, **MARKS)
    config._attn_implementation = "eager"
    kind = getattr(transformers, KINDS.get(family, f"{family}ForCausalLM"))
    model = kind(config).eval()
    with torch.no_grad():
      for value in model.parameters():
        # A scale of zero would hide what it multiplies.
        value.copy_(0.3 * torch.randn_like(value) + (value == 1))
    model.tie_weights()
    model.save_pretrained(HERE / name, max_shard_size=shard)
    (HERE / name / "generation_config.json").unlink(missing_ok=True)
    found |= {f"{name}/{key}": x for key, x in results(model, ids, lengths).items()}
  np.savez_compressed(HERE / "found.npz", **found)


def results(model, ids, lengths) -> dict[str, np.ndarray]:
  x = model.get_input_embeddings()(ids).detach().requires_grad_()
  logits = model(inputs_embeds=x).logits
  loss = torch.nn.functional.cross_entropy(
    logits[:, :-1].reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1)
  )
  loss.backward()
  written = []
  for row, length in zip(ids, lengths, strict=True):
    now = row[None, :length]
    with torch.no_grad():
      for _ in range(WRITTEN):
        now = torch.cat([now, model(now).logits[:, -1:].argmax(-1)], 1)
    written.append(now[0, length:].numpy())
  return {
    "logits": logits.detach().numpy(),
    "loss": loss.detach().numpy(),
    "gradient": x.grad.numpy(),
    "written": np.stack(written),
  }


if __name__ == "__main__":
  main()

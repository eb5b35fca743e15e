"""Tiny GGUF files, written by the package gguf."""

import gguf
import numpy as np

# Letter "Ġ" is a space of a byte-level BPE.
LETTERS = [*"abcdefghijklmnopqrstuvwxyz0123456789.,!", "Ġ", "Ċ"]
MERGES = ["t h", "th e", "Ġ the", "i n", "Ġ a", "Ġ Ġ"]
MARKS = ["<|end|>", "<|start|>", "<|stop|>"]
TOKENS = [*MARKS, *LETTERS, *(merge.replace(" ", "") for merge in MERGES)]
CONTROL, NORMAL = 3, 1
SIZES = {"H": 64, "F": 96, "L": 2, "N": 4, "K": 2, "X": 32}


def weights(kind, seed=0):
  """Hugging Face's name -> float32 array of a llama or a gpt2."""
  H, F, N, K = (SIZES[letter] for letter in "HFNK")
  J, rng = H // N * K, np.random.default_rng(seed)
  found = {}

  def draw(name, *shape):
    found[name] = rng.normal(0, 0.1, shape).astype(np.float32)

  if kind == "llama":
    draw("model.embed_tokens.weight", len(TOKENS), H)
    draw("model.norm.weight", H)
    for layer in range(SIZES["L"]):
      at = f"model.layers.{layer}"
      for norm in ("input_layernorm", "post_attention_layernorm"):
        draw(f"{at}.{norm}.weight", H)
      for part, rows in {"q": H, "k": J, "v": J, "o": H}.items():
        draw(f"{at}.self_attn.{part}_proj.weight", rows, H)
      for part in ("gate", "up"):
        draw(f"{at}.mlp.{part}_proj.weight", F, H)
      draw(f"{at}.mlp.down_proj.weight", H, F)
    return found
  draw("transformer.wte.weight", len(TOKENS), H)
  draw("transformer.wpe.weight", SIZES["X"], H)
  parts = {"attn.c_attn": (H, 3 * H), "attn.c_proj": (H, H)}
  parts |= {"mlp.c_fc": (H, F), "mlp.c_proj": (F, H), "ln_1": (H,), "ln_2": (H,)}
  names = {
    f"transformer.h.{i}.{n}": s for i in range(SIZES["L"]) for n, s in parts.items()
  }
  for name, shape in {**names, "transformer.ln_f": (H,)}.items():
    draw(f"{name}.weight", *shape)
    draw(f"{name}.bias", shape[-1])
  return found


NAMES = {
  "model.embed_tokens": "token_embd", "model.norm": "output_norm",
  "model.layers.": "blk.", "input_layernorm": "attn_norm",
  "post_attention_layernorm": "ffn_norm", "self_attn.o_proj": "attn_output",
  "self_attn.": "attn_", "mlp.gate": "ffn_gate", "mlp.up": "ffn_up",
  "mlp.down": "ffn_down", "transformer.wte": "token_embd",
  "transformer.wpe": "position_embd", "transformer.ln_f": "output_norm",
  "transformer.h.": "blk.", "ln_1": "attn_norm", "ln_2": "ffn_norm",
  "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up",
  "mlp.c_proj": "ffn_down", "_proj": "",
}  # fmt: skip


def stored(kind, name, array):
  """(name, array) as llama.cpp's converter writes them."""
  ours = name
  for theirs, word in NAMES.items():
    ours = ours.replace(theirs, word)
  if kind == "gpt2" and array.ndim == 2 and ".h." in name:
    array = array.T
  if "q_proj" in name or "k_proj" in name:
    heads = SIZES["N"] if "q_proj" in name else SIZES["K"]
    # One head after another: row i beside row i + D/2.
    split = array.reshape(heads, 2, -1, array.shape[1])
    array = np.stack([split[:, 0], split[:, 1]], axis=2).reshape(array.shape)
  return ours, np.ascontiguousarray(array)


def write(path, kind="llama", types=None, change=None, pre="smollm"):
  """A file; returns what its weights are once unpacked, by Hugging Face's name.

  Args:
    types: name of a quantised type for matrices, or None. change: called with the
      writer before tensors are added.
  """
  H, F, L, N, K, X = (SIZES[letter] for letter in "HFLNKX")
  writer = gguf.GGUFWriter(str(path), kind)
  writer.add_block_count(L)
  writer.add_context_length(X)
  writer.add_embedding_length(H)
  writer.add_feed_forward_length(F)
  writer.add_head_count(N)
  if kind == "llama":
    writer.add_head_count_kv(K)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
  else:
    writer.add_layer_norm_eps(1e-5)
  writer.add_tokenizer_model("gpt2")
  writer.add_tokenizer_pre(pre)
  writer.add_token_list(TOKENS)
  writer.add_token_merges(MERGES)
  words = len(TOKENS) - len(MARKS)
  writer.add_token_types([CONTROL] * len(MARKS) + [NORMAL] * words)
  writer.add_bos_token_id(1)
  writer.add_eos_token_id(2)
  writer.add_pad_token_id(2)
  writer.add_chat_template("{{ messages }}")
  if change:
    change(writer)
  found = {}
  for name, array in weights(kind).items():
    ours, given = stored(kind, name, array)
    found[name] = array
    if types and array.ndim == 2:
      number = gguf.GGMLQuantizationType[types]
      raw = gguf.quants.quantize(given, number)
      writer.add_tensor(ours, raw, raw_dtype=number)
      found[name] = (ours, gguf.quants.dequantize(raw, number))
    else:
      writer.add_tensor(ours, given)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return found

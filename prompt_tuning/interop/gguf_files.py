"""GGUF files: weights of llama.cpp, quantised or not, under Hugging Face's names.

A file holds settings, a tokenizer (`data/tokenizer_gguf.py`) and tensors. Blocks of
quantised weights become float32 by the package `gguf`, some rows at a time, when they
are asked for. A llama's query and key rows lie there in pairs, as llama.cpp turns them;
they are put back into halves, as Transformers and this library turn them.
"""

import dataclasses
import math
import re
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from prompt_tuning.core import files
from prompt_tuning.data import gguf_header, tokenizer_gguf
from prompt_tuning.data.gguf_header import Header, Tensor
from prompt_tuning.interop.lazy import (
  BLOCK_BYTES,
  Index,
  Lazy,
  UnreadableError,
  assign,
  in_file,
  open_bytes,
  reshaped,
  transposed,
)

# Types of the numbers that stand as they are.
PLAIN = {"F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}
_LAYER = re.compile(r"blk\.(\d{1,6})\.(\w+)\.(weight|bias)")
_TOPS = {
  "llama": {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
  },
  "gpt2": {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
  },
}
_LAYERS = {
  "llama": {
    "attn_norm": "model.layers.{}.input_layernorm",
    "ffn_norm": "model.layers.{}.post_attention_layernorm",
    "attn_q": "model.layers.{}.self_attn.q_proj",
    "attn_k": "model.layers.{}.self_attn.k_proj",
    "attn_v": "model.layers.{}.self_attn.v_proj",
    "attn_output": "model.layers.{}.self_attn.o_proj",
    "ffn_gate": "model.layers.{}.mlp.gate_proj",
    "ffn_up": "model.layers.{}.mlp.up_proj",
    "ffn_down": "model.layers.{}.mlp.down_proj",
  },
  "gpt2": {
    "attn_norm": "transformer.h.{}.ln_1",
    "ffn_norm": "transformer.h.{}.ln_2",
    "attn_qkv": "transformer.h.{}.attn.c_attn",
    "attn_output": "transformer.h.{}.attn.c_proj",
    "ffn_up": "transformer.h.{}.mlp.c_fc",
    "ffn_down": "transformer.h.{}.mlp.c_proj",
  },
}
# Stored [out in] here, [in out] by Transformers.
_TURNED = ("attn_qkv", "attn_output", "ffn_up", "ffn_down")


def read(path: Any) -> tuple[dict[str, Any], dict[str, Lazy], str | None]:
  """(fields of a config.json, name -> array, vocabulary or None); no weights are read.

  Args:
    path: `pathlib.Path` or `epath.Path` of a GGUF file.

  Raises:
    UnreadableError: if it is damaged, of an architecture that is not read here, or
      quantised where the package `gguf` is not installed.
  """
  try:
    header = gguf_header.read(path)
    kind = header.settings.get("general.architecture")
    if not isinstance(kind, str) or kind not in _TOPS:
      raise UnreadableError(
        f"{str(path)!r} says general.architecture {reprlib.repr(kind)}; of GGUF files "
        f"this library reads {' and '.join(_TOPS)}."
      )
    fields = _FIELDS[kind](_Settings(header, kind))
    vocabulary = str(path) if tokenizer_gguf.is_known(path) else None
    return fields, _arrays(header, kind, fields), vocabulary
  except UnreadableError:
    raise
  except ValueError as error:
    raise UnreadableError(str(error)) from error


class _Settings:
  """Settings of an architecture, each read as the kind that it must be."""

  def __init__(self, header: Header, kind: str) -> None:
    self.header, self.kind = header, kind

  def number(self, name: str, absent: Any = None, kinds: Any = (int,)) -> Any:
    """A number above 0; `absent` where the file does not say, if that is given."""
    full = f"{self.kind}.{name}"
    value = self.header.settings.get(full, absent)
    if type(value) not in kinds or not 0 < value < math.inf:
      raise UnreadableError(
        f"{self.header.path!r} says {full} is {reprlib.repr(value)}; it must be a "
        "number above 0."
      )
    return value

  def float(self, name: str, absent: Any = None) -> float:
    """The shortest decimal number that is stored as this one."""
    return float(str(np.float32(self.number(name, absent, (float,)))))

  def only(self, name: str, *known: Any) -> None:
    """Refuses a setting that this library's network does not compute."""
    full = f"{self.kind}.{name}"
    value = self.header.settings.get(full)
    if value is not None and value not in known:
      raise UnreadableError(
        f"{self.header.path!r} says {full} {reprlib.repr(value)}, which this library "
        "does not compute."
      )

  def marks(self) -> dict[str, int]:
    """Ids that begin and end texts, where the file says."""
    found = {}
    for role in ("bos", "eos"):
      value = self.header.settings.get(f"tokenizer.ggml.{role}_token_id")
      if value is not None:
        found[f"{role}_token_id"] = value
    return found

  def rows(self) -> int:
    """Of the token table."""
    table = self.header.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
      raise UnreadableError(f"{self.header.path!r} holds no table token_embd.weight.")
    return table.shape[0]


def _llama(said: _Settings) -> dict[str, Any]:
  heads, width = said.number("attention.head_count"), said.number("embedding_length")
  head = said.number("attention.key_length", max(width // heads, 1))
  said.only("attention.value_length", head)
  said.only("rope.dimension_count", head)
  said.only("rope.scaling.type", "none")
  said.only("expert_count", 0)
  said.only("attention.sliding_window", 0)
  tensors = said.header.tensors
  return {
    "model_type": "llama",
    "vocab_size": said.rows(),
    "hidden_size": width,
    "num_hidden_layers": said.number("block_count"),
    "num_attention_heads": heads,
    "num_key_value_heads": said.number("attention.head_count_kv", heads),
    "head_dim": head,
    "intermediate_size": said.number("feed_forward_length"),
    "max_position_embeddings": said.number("context_length"),
    "rms_norm_eps": said.float("attention.layer_norm_rms_epsilon"),
    "rope_theta": said.float("rope.freq_base", 10000.0),
    "attention_bias": "blk.0.attn_q.bias" in tensors,
    "mlp_bias": "blk.0.ffn_up.bias" in tensors,
    "tie_word_embeddings": "output.weight" not in tensors,
    **said.marks(),
  }


def _gpt2(said: _Settings) -> dict[str, Any]:
  return {
    "model_type": "gpt2",
    "vocab_size": said.rows(),
    "n_embd": said.number("embedding_length"),
    "n_layer": said.number("block_count"),
    "n_head": said.number("attention.head_count"),
    "n_inner": said.number("feed_forward_length"),
    "n_positions": said.number("context_length"),
    "layer_norm_epsilon": said.float("attention.layer_norm_epsilon"),
    "tie_word_embeddings": "output.weight" not in said.header.tensors,
    **said.marks(),
  }


_FIELDS: dict[str, Callable[[_Settings], dict[str, Any]]] = {
  "llama": _llama,
  "gpt2": _gpt2,
}


def _arrays(header: Header, kind: str, fields: Mapping[str, Any]) -> dict[str, Lazy]:
  """Hugging Face's name -> array."""
  if any(tensor.kind not in PLAIN for tensor in header.tensors.values()):
    _package(header.path)
  found = {}
  for name, tensor in header.tensors.items():
    part, lazy = name, _lazy(header.path, tensor)
    match = _LAYER.fullmatch(name)
    if match:
      layer, part, end = match.groups()
      known, prefix = _LAYERS[kind], _LAYERS[kind].get(part, "").format(layer)
    else:
      part, _, end = name.rpartition(".")
      known, prefix = _TOPS[kind], _TOPS[kind].get(part, "")
    if part not in known or end not in ("weight", "bias"):
      raise UnreadableError(
        f"{header.path!r} holds {name!r}, which no {kind} of this library has."
      )
    if kind == "llama" and part in ("attn_q", "attn_k"):
      heads = "num_attention_heads" if part == "attn_q" else "num_key_value_heads"
      lazy = _in_halves(header.path, name, lazy, fields[heads])
    if kind == "gpt2" and part in _TURNED and end == "weight":
      lazy = transposed(lazy)
    found[f"{prefix}.{end}"] = lazy
  return found


def _in_halves(path: str, name: str, lazy: Lazy, heads: int) -> Lazy:
  """Rows of each head from pairs, [D/2 2], to halves, [2 D/2]."""
  if not lazy.shape or lazy.shape[0] % (2 * heads):
    raise UnreadableError(
      f"{path!r} holds {name} of shape {lazy.shape}, which are not {heads} heads."
    )

  def into(target: np.ndarray, index: Index) -> None:
    rows = lazy.read().reshape(heads, -1, 2, *lazy.shape[1:])
    assign(target, np.swapaxes(rows, 1, 2).reshape(lazy.shape)[index])

  return Lazy(lazy.shape, lazy.dtype, into)


def _lazy(path: str, tensor: Tensor) -> Lazy:
  place = files.at(path)
  if tensor.kind in PLAIN:
    dtype = np.dtype(PLAIN[tensor.kind])
    return in_file(place, tensor.start, tensor.shape, dtype)
  if len(tensor.shape) > 1:
    return _blocks(place, tensor)
  row = dataclasses.replace(tensor, shape=(1, *tensor.shape))
  return reshaped(_blocks(place, row), tensor.shape)


def _blocks(place: Any, tensor: Tensor) -> Lazy:
  """An array of blocks along its last axis, read by rows of its first."""
  shape = tensor.shape
  # Rows of blocks in one row of the first axis, and bytes of it.
  inner, width = math.prod(shape[1:-1]), tensor.size // shape[0]
  step = max(1, BLOCK_BYTES // (4 * inner * shape[-1]))

  def into(target: np.ndarray, index: Index) -> None:
    first, end = index[0].start, index[0].stop
    with open_bytes(place) as file:
      for start in range(first, end, step):
        stop = min(start + step, end)
        file.seek(tensor.start + start * width)
        data = file.read((stop - start) * width)
        if len(data) != (stop - start) * width:
          raise UnreadableError(f"{str(place)!r} is damaged: it ends within an array.")
        raw = np.frombuffer(data, np.uint8).reshape((stop - start) * inner, -1)
        block = _dequantised(str(place), raw, tensor.kind)
        block = block.reshape(stop - start, *shape[1:])
        assign(target[start - first : stop - first], block[(slice(None), *index[1:])])

  return Lazy(shape, np.dtype(np.float32), into)


def _dequantised(path: str, raw: np.ndarray, kind: str) -> np.ndarray:
  """float32 [R W] of blocks, uint8 [R bytes]."""
  package = _package(path)
  # Damaged scales overflow; what is not finite is refused where arrays are placed.
  with np.errstate(all="ignore"):
    return package.dequantize(raw, package.GGMLQuantizationType[kind])


def _package(path: str) -> Any:
  try:
    from gguf import quants
  except ImportError as error:
    raise UnreadableError(
      f"{path!r} holds quantised weights, which the package gguf unpacks; it cannot be "
      f"imported ({error}). pip install 'prompt-tuning[gguf]'"
    ) from error
  return quants

"""Names and layouts of decoders' weights: Hugging Face's, and those of our trees.

Linear weights are stored [out, in] there and [in, out] here; those of a GPT-2 are
[in, out] on both sides. A GPT-2 keeps query, key and value side by side, a GPT-NeoX
head by head.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prompt_tuning.backbones.decoder.config import DecoderConfig
from prompt_tuning.interop.lazy import (
  Lazy,
  UnreadableError,
  cut,
  picked,
  reshaped,
  transposed,
)

# (name here, name there, what makes one of the other).
Row = tuple[str, str, Callable[[Lazy], Lazy]]
# In front of names in files of models with a head; bare models are saved without.
PREFIXES = {
  "llama": ("model.",),
  "gpt2": ("transformer.",),
  "opt": ("model.decoder.", "decoder."),
  "gpt_neox": ("gpt_neox.",),
}
# What is no weight: masks and wave lengths.
_BUFFERS = re.compile(
  r"(h|layers)\.\d+\.(attn|attention|self_attn)\."
  r"(bias|masked_bias|rotary_emb\.inv_freq)|rotary_emb\.inv_freq"
)
_HEADS = ("lm_head.weight", "embed_out.weight")
_NORMS = "pre_self_attention_layer_norm", "pre_mlp_layer_norm"


def arrays(
  kind: str, config: DecoderConfig, tensors: Mapping[str, Lazy], where: str
) -> dict[str, Lazy]:
  """Name here -> array, of all weights of a file.

  Args:
    kind: model_type. config: of the model. tensors: name there -> array.
    where: they are.

  Raises:
    UnreadableError: for weights that are missing, or that no such model has.
  """
  bare = {_bare(name, kind): name for name in tensors}
  found, used, missing = {}, set(), []
  for ours, theirs, make in _rows(kind, config):
    names = theirs.split("|")
    name = next((name for name in names if name in bare), None)
    if name is None:
      missing.append(names[0])
      continue
    used.add(name)
    found[ours] = _made(make, tensors[bare[name]], bare[name], where)
  tied = _HEADS if config.logits_via_embedding else ()
  unknown = sorted(
    bare[name]
    for name in set(bare) - used
    if name not in tied and not _BUFFERS.fullmatch(name)
  )
  for words, names in (("lacks", missing), ("holds what no such model has:", unknown)):
    if names:
      raise UnreadableError(
        f"{where!r} says model_type {kind!r}, but {words} {', '.join(names[:8])}"
        f"{' and more' if len(names) > 8 else ''}."
      )
  return found


def _bare(name: str, kind: str) -> str:
  prefix = next((one for one in PREFIXES[kind] if name.startswith(one)), "")
  return name.removeprefix(prefix)


def _made(make: Callable[[Lazy], Lazy], lazy: Lazy, name: str, where: str) -> Lazy:
  try:
    return make(lazy)
  except (IndexError, ValueError) as error:
    raise UnreadableError(
      f"{where!r} holds {name} of shape {tuple(lazy.shape)}, which does not fit its "
      "config.json."
    ) from error


def _same(lazy: Lazy) -> Lazy:
  return lazy


def _rows(kind: str, config: DecoderConfig) -> Iterator[Row]:
  top = _TOPS[kind]
  yield "token_embedder/embedding", top["tokens"], _same
  if config.positions == "learned":
    yield "position_embedder/embedding", top["positions"], _same
  yield from _norm("decoder/decoder_norm", top["norm"], config)
  if not config.logits_via_embedding:
    yield "decoder/logits_dense/kernel", "|".join(_HEADS), transposed
  for layer in range(config.num_decoder_layers):
    for ours, theirs, make in _LAYERS[kind](config):
      yield f"decoder/layers_{layer}/{ours}", f"{top['layers']}.{layer}.{theirs}", make


_TOPS: dict[str, dict[str, str]] = {
  "llama": {"tokens": "embed_tokens.weight", "norm": "norm", "layers": "layers"},
  "gpt2": {
    "tokens": "wte.weight",
    "positions": "wpe.weight",
    "norm": "ln_f",
    "layers": "h",
  },
  "opt": {
    "tokens": "embed_tokens.weight",
    "positions": "embed_positions.weight",
    "norm": "final_layer_norm",
    "layers": "layers",
  },
  "gpt_neox": {
    "tokens": "embed_in.weight",
    "norm": "final_layer_norm",
    "layers": "layers",
  },
}


def _norm(ours: str, theirs: str, config: DecoderConfig) -> Iterator[Row]:
  yield f"{ours}/scale", f"{theirs}.weight", _same
  if config.norm == "layer":
    yield f"{ours}/bias", f"{theirs}.bias", _same


def _linear(ours: str, theirs: str, bias: bool, turned: bool = True) -> Iterator[Row]:
  yield f"{ours}/kernel", f"{theirs}.weight", transposed if turned else _same
  if bias:
    yield f"{ours}/bias", f"{theirs}.bias", _same


def _llama(config: DecoderConfig) -> Iterator[Row]:
  names = "input_layernorm", "post_attention_layernorm"
  for ours, theirs in zip(_NORMS, names, strict=True):
    yield from _norm(ours, theirs, config)
  for ours, theirs in zip(("query", "key", "value", "out"), "qkvo", strict=True):
    name = f"self_attn.{theirs}_proj"
    yield from _linear(f"self_attention/{ours}", name, config.attention_bias)
  for ours, theirs in {"wi_0": "gate", "wi_1": "up", "wo": "down"}.items():
    yield from _linear(f"mlp/{ours}", f"mlp.{theirs}_proj", config.mlp_bias)


def _opt(config: DecoderConfig) -> Iterator[Row]:
  names = "self_attn_layer_norm", "final_layer_norm"
  for ours, theirs in zip(_NORMS, names, strict=True):
    yield from _norm(ours, theirs, config)
  for ours, theirs in {"query": "q", "key": "k", "value": "v", "out": "out"}.items():
    name = f"self_attn.{theirs}_proj"
    yield from _linear(f"self_attention/{ours}", name, config.attention_bias)
  for ours, theirs in {"wi": "fc1", "wo": "fc2"}.items():
    yield from _linear(f"mlp/{ours}", theirs, config.mlp_bias)


def _gpt2(config: DecoderConfig) -> Iterator[Row]:
  for ours, theirs in zip(_NORMS, ("ln_1", "ln_2"), strict=True):
    yield from _norm(ours, theirs, config)
  for number, ours in enumerate(("query", "key", "value")):
    part = _side_by_side(number, config.emb_dim)
    yield f"self_attention/{ours}/kernel", "attn.c_attn.weight", part
    yield f"self_attention/{ours}/bias", "attn.c_attn.bias", part
  yield from _linear("self_attention/out", "attn.c_proj", True, turned=False)
  for ours, theirs in {"wi": "c_fc", "wo": "c_proj"}.items():
    yield from _linear(f"mlp/{ours}", f"mlp.{theirs}", True, turned=False)


def _side_by_side(number: int, width: int) -> Callable[[Lazy], Lazy]:
  def make(lazy: Lazy) -> Lazy:
    if lazy.shape[-1] != 3 * width:
      raise ValueError(lazy.shape)
    start = number * width
    return cut(lazy, len(lazy.shape) - 1, start, start + width)

  return make


def _neox(config: DecoderConfig) -> Iterator[Row]:
  names = "input_layernorm", "post_attention_layernorm"
  for ours, theirs in zip(_NORMS, names, strict=True):
    yield from _norm(ours, theirs, config)
  for number, ours in enumerate(("query", "key", "value")):
    part = _by_head(number, config)
    yield f"self_attention/{ours}/kernel", "attention.query_key_value.weight", part
    if config.attention_bias:
      yield f"self_attention/{ours}/bias", "attention.query_key_value.bias", part
  dense = "attention.dense", config.attention_bias
  yield from _linear("self_attention/out", *dense)
  for ours, theirs in {"wi": "dense_h_to_4h", "wo": "dense_4h_to_h"}.items():
    yield from _linear(f"mlp/{ours}", f"mlp.{theirs}", config.mlp_bias)


def _by_head(number: int, config: DecoderConfig) -> Callable[[Lazy], Lazy]:
  """Rows [N 3 D] of one of the three."""
  N, D = config.num_heads, config.head_dim

  def make(lazy: Lazy) -> Lazy:
    rest = lazy.shape[1:]
    if lazy.shape[0] != 3 * N * D:
      raise ValueError(lazy.shape)
    heads = picked(reshaped(lazy, (N, 3, D, *rest)), 1, number)
    whole = reshaped(heads, (N * D, *rest))
    return transposed(whole) if rest else whole

  return make


_LAYERS: dict[str, Any] = {
  "llama": _llama,
  "gpt2": _gpt2,
  "opt": _opt,
  "gpt_neox": _neox,
}

"""Hugging Face folders of a T5: config.json and its weights, single or sharded.

Linear weights are stored [out, in] there and [in, out] here. The kind of logits is read
from the weights, not from `tie_word_embeddings`, which releases of transformers write
differently: an `lm_head.weight` means separate logits, unless it repeats the table of a
model whose logits are scaled (T5 1.0). float32 and bfloat16 pass bit for bit both ways.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.backbones.t5.config import T5Config
from prompt_tuning.backbones.t5.stacking import Leaf, unrolled
from prompt_tuning.core.folders import whole_folder
from prompt_tuning.interop import places, shards, untrusted
from prompt_tuning.interop import vocabulary as vocabulary_files
from prompt_tuning.interop.hugging_names import name_here, names_there
from prompt_tuning.interop.lazy import BLOCK_BYTES, Lazy, UnreadableError, transposed
from prompt_tuning.interop.source import Source, config_of

TABLES = ("shared", "encoder.embed_tokens", "decoder.embed_tokens")
KERNEL = "decoder/logits_dense/kernel"
FAMILIES = ("t5", "mt5")
# Field of config.json -> (what its absence means, values that this network computes).
FIXED = {
  "feed_forward_proj": ("relu", ("relu", "gated-gelu", "gated-gelu_new")),
  "layer_norm_epsilon": (1e-6, (1e-6,)),
  "pad_token_id": (0, (0, None)),
  "eos_token_id": (1, (1, None)),
  "decoder_start_token_id": (0, (0, None)),
  "is_encoder_decoder": (True, (True,)),
}
# A leftover in files of T5 1.0: cross attention has no position bias.
NEVER_READ = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


def recognises(folder: Any) -> bool:
  """Whether a folder's config.json is that of a T5 of Hugging Face."""
  try:
    return untrusted.read_object(folder / "config.json").get("model_type") in FAMILIES
  except UnreadableError:
    return False


def open_source(folder: Any) -> Source:
  """Reads the configuration and the names; no weights.

  Args:
    folder: `pathlib.Path` or `epath.Path`.

  Raises:
    UnreadableError: for another architecture, a missing or damaged file, or weights
      that are no part of a T5 or not those that config.json describes.
  """
  fields = untrusted.read_object(folder / "config.json")
  family = fields.get("model_type")
  if family not in FAMILIES:
    raise UnreadableError(
      f"{str(folder / 'config.json')!r} says model_type {family!r}; this library reads "
      f"{list(FAMILIES)} (Flan and ByT5 are stored as one of them)."
    )
  arrays = _named(shards.tensors(folder), str(folder))
  _choose_logits(arrays, _scaled(fields), str(folder))
  config = _config(fields, arrays, folder)
  return Source(folder, config, arrays, vocabulary=_vocabulary(folder, config))


def _named(tensors: Mapping[str, Lazy], where: str) -> dict[str, Lazy]:
  """T5X name -> array."""
  arrays, unknown = {}, []
  table = next((t for t in TABLES if f"{t}.weight" in tensors), "shared")
  for name, lazy in tensors.items():
    bare = name.removesuffix(".weight")
    if bare in TABLES:
      if bare != table:
        continue
      name = "shared.weight"
    here = name_here(name)
    if here is not None:
      arrays[here[0]] = transposed(lazy) if here[1] else lazy
    elif name != NEVER_READ:
      unknown.append(name)
  if unknown:
    raise UnreadableError(
      f"{where!r} holds weights that no T5 has: {', '.join(sorted(unknown)[:8])}."
    )
  if "token_embedder/embedding" not in arrays:
    raise UnreadableError(f"{where!r} holds no token table, {TABLES[0]}.weight.")
  return arrays


def _scaled(fields: Mapping[str, Any]) -> bool:
  """Whether logits are scaled by H^-0.5, which T5 1.0 alone does."""
  stated = fields.get("scale_decoder_outputs")
  if stated is None:
    # An mT5 never scales.
    stated = fields["model_type"] != "mt5" and fields.get("tie_word_embeddings", True)
  return bool(stated)


def _choose_logits(arrays: dict[str, Lazy], scaled: bool, where: str) -> None:
  """Leaves logits of the token table without a kernel, and all others with one."""
  table = arrays["token_embedder/embedding"]
  kernel = arrays.get(KERNEL)
  if kernel is None and not scaled:
    # Logits from the shared table without T5 1.0's scale: a kernel of their own here.
    arrays[KERNEL] = transposed(table)
  elif kernel is not None and scaled:
    # Files of T5 1.0 may repeat the table under this name.
    if not _equal(transposed(kernel), table):
      raise UnreadableError(
        f"{where!r} holds a lm_head.weight that is not shared.weight, while its "
        "config.json scales logits as models do that share the two. Say "
        '"scale_decoder_outputs": false in config.json if it is a T5 1.1.'
      )
    del arrays[KERNEL]


def _equal(left: Lazy, right: Lazy) -> bool:
  if left.shape != right.shape or left.dtype != right.dtype:
    return False
  width = left.shape[1] * left.dtype.itemsize
  step = max(1, BLOCK_BYTES // max(1, width))
  for start in range(0, left.shape[0], step):
    rows = (slice(start, start + step), slice(None))
    if left.read(rows).tobytes() != right.read(rows).tobytes():
      return False
  return True


def _config(
  fields: Mapping[str, Any], arrays: Mapping[str, Lazy], folder: Any
) -> T5Config:
  """The architecture of the arrays, which config.json must describe."""
  for name, (default, known) in FIXED.items():
    if fields.get(name, default) not in known:
      raise UnreadableError(
        f"{str(folder / 'config.json')!r} says {name} {fields[name]!r}; this library's "
        f"T5 knows {', '.join(map(repr, known))}."
      )
  distance = fields.get("relative_attention_max_distance", 128)
  if type(distance) is not int:
    raise UnreadableError(
      f"{str(folder)!r}: relative_attention_max_distance is {distance!r}."
    )
  shapes = {name: lazy.shape for name, lazy in arrays.items()}
  config = config_of(shapes, str(folder), distance)
  layers = fields.get("num_layers")
  stated = {
    "d_model": config.emb_dim,
    "num_heads": config.num_heads,
    "d_kv": config.head_dim,
    "d_ff": config.mlp_dim,
    "num_layers": config.num_encoder_layers,
    "num_decoder_layers": config.num_decoder_layers,
    "relative_attention_num_buckets": config.relative_buckets,
  }
  absent = {"num_decoder_layers": layers, "relative_attention_num_buckets": 32}
  differ = [
    f"{name}: {fields.get(name)!r} in config.json, {ours} in the weights"
    for name, ours in stated.items()
    if (fields.get(name) or absent.get(name)) != ours
  ]
  gated = fields.get("feed_forward_proj", "relu") != "relu"
  if gated != (len(config.mlp_activations) > 1):
    differ.append(f"feed_forward_proj: {fields.get('feed_forward_proj', 'relu')!r}")
  if differ:
    raise UnreadableError(
      f"config.json and weights of {str(folder)!r} are not of one T5: "
      f"{'; '.join(differ)}. Copy both from the same model."
    )
  return config


def _vocabulary(folder: Any, config: T5Config) -> str | None:
  tokenizer = folder / "tokenizer_config.json"
  if tokenizer.is_file():
    kind = untrusted.read_object(tokenizer).get("tokenizer_class")
    if kind == "ByT5Tokenizer":
      return "bytes"
  return places.vocabulary(folder, config.vocab_size)


def write(
  folder: str | pathlib.Path,
  backbone: T5,
  params: Any,
  vocabulary: str | pathlib.Path | None = None,
  dtype: Any = None,
  shard_bytes: int = 5 << 30,
) -> None:
  """Writes config.json and safetensors that transformers loads.

  Args:
    folder: see `core.folders.whole_folder`.
    backbone: architecture. params: its weights, scanned or not.
    vocabulary: SentencePiece file or tokenizer.json to put beside them.
    dtype: cast the weights (loses precision where it is narrower), None to keep theirs.
    shard_bytes: of one file at most, but for a single larger array; larger models are
      sharded, and one shard at a time is held in this format.
  """
  config = dataclasses.replace(backbone.config, scan_layers=False)
  weights, names = {}, names_there(config)
  for ours, leaf in unrolled(params).items():
    theirs, turned = names[ours]
    kept = leaf.dtype if dtype is None else np.dtype(dtype)
    shape = leaf.shape[::-1] if turned else leaf.shape
    weights[theirs] = shards.Out(shape, kept, _maker(leaf, turned, kept))
  kinds = {weight.dtype.name for weight in weights.values()}
  with whole_folder(folder) as aside:
    fields = _fields(config, kinds.pop() if len(kinds) == 1 else None)
    text = json.dumps(fields, indent=2) + "\n"
    (aside / "config.json").write_text(text, encoding="utf-8")
    shards.save(aside, weights, shard_bytes)
    if vocabulary is not None:
      vocabulary_files.write(aside, str(vocabulary))


def _maker(leaf: Leaf, turned: bool, dtype: Any) -> Callable[[], np.ndarray]:
  def make() -> np.ndarray:
    value = np.asarray(leaf.read()).astype(dtype, copy=False)
    return np.ascontiguousarray(value.T if turned else value)

  return make


def _fields(config: T5Config, dtype: str | None) -> dict[str, Any]:
  tied, gated = config.logits_via_embedding, len(config.mlp_activations) > 1
  fields = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "is_encoder_decoder": True,
    "d_model": config.emb_dim,
    "d_kv": config.head_dim,
    "d_ff": config.mlp_dim,
    "num_layers": config.num_encoder_layers,
    "num_decoder_layers": config.num_decoder_layers,
    "num_heads": config.num_heads,
    "vocab_size": config.vocab_size,
    "relative_attention_num_buckets": config.relative_buckets,
    "relative_attention_max_distance": config.relative_max_distance,
    "feed_forward_proj": "gated-gelu" if gated else "relu",
    "layer_norm_epsilon": 1e-6,
    "dropout_rate": config.dropout_rate,
    # Releases of transformers disagree about which of the two scales the logits.
    "tie_word_embeddings": tied,
    "scale_decoder_outputs": tied,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
  }
  return fields if dtype is None else {**fields, "torch_dtype": dtype}

"""Hugging Face folders of a T5: config.json and safetensors, single or sharded.

Linear weights are stored [out, in] there and [in, out] here. The kind of logits is read
from the weights, not from `tie_word_embeddings`, which releases of transformers write
differently: an `lm_head.weight` means separate logits.
"""

import dataclasses
import json
import pathlib
import re
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import numpy as safetensors_numpy
from safetensors import safe_open

from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.backbones.t5.config import T5Config
from prompt_tuning.backbones.t5.stacking import unstack_layers
from prompt_tuning.core.files import whole_folder
from prompt_tuning.core.trainable import flatten
from prompt_tuning.interop.source import Lazy, Source, UnreadableError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
TABLES = ("shared", "encoder.embed_tokens", "decoder.embed_tokens")
FAMILIES = ("t5", "mt5")
ATTENTION = {"q": "query", "k": "key", "v": "value", "o": "out"}
# (stack, number of the sublayer, its name there) -> its name here.
SUBLAYERS = {
  ("encoder", "0", "SelfAttention"): "attention",
  ("encoder", "1", "DenseReluDense"): "mlp",
  ("decoder", "0", "SelfAttention"): "self_attention",
  ("decoder", "1", "EncDecAttention"): "encoder_decoder_attention",
  ("decoder", "2", "DenseReluDense"): "mlp",
}
NORMS = {
  ("encoder", "0"): "pre_attention_layer_norm",
  ("encoder", "1"): "pre_mlp_layer_norm",
  ("decoder", "0"): "pre_self_attention_layer_norm",
  ("decoder", "1"): "pre_cross_attention_layer_norm",
  ("decoder", "2"): "pre_mlp_layer_norm",
}
_BLOCK = re.compile(r"(encoder|decoder)\.block\.(\d+)\.layer\.(\d)\.(.+)\.weight")


def name_here(name: str) -> tuple[str, bool] | None:
  """(T5X name, whether to transpose) of a Hugging Face name; None if unknown."""
  if name == "lm_head.weight":
    return "decoder/logits_dense/kernel", True
  if name == "shared.weight":
    return "token_embedder/embedding", False
  norm = re.fullmatch(r"(encoder|decoder)\.final_layer_norm\.weight", name)
  if norm:
    return f"{norm.group(1)}/{norm.group(1)}_norm/scale", False
  found = _BLOCK.fullmatch(name)
  if not found:
    return None
  side, layer, number, rest = found.groups()
  if rest == "layer_norm" and (side, number) in NORMS:
    return f"{side}/layers_{layer}/{NORMS[side, number]}/scale", False
  if rest == "SelfAttention.relative_attention_bias" and (layer, number) == ("0", "0"):
    return f"{side}/relpos_bias/rel_embedding", True
  part, _, weight = rest.partition(".")
  ours = SUBLAYERS.get((side, number, part))
  known = ("wi", "wi_0", "wi_1", "wo") if ours == "mlp" else tuple(ATTENTION)
  if ours is None or weight not in known:
    return None
  return f"{side}/layers_{layer}/{ours}/{ATTENTION.get(weight, weight)}/kernel", True


def recognises(folder: pathlib.Path) -> bool:
  """Whether a folder's config.json is a Hugging Face model's."""
  try:
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return False
  return isinstance(fields, dict) and "d_model" in fields


def open_source(folder: pathlib.Path) -> Source:
  """Reads the configuration and the names; no weights.

  Raises:
    UnreadableError: for another architecture, a missing or damaged file, or weights
      that are no part of a T5.
  """
  fields = _json(folder / "config.json")
  family = fields.get("model_type")
  if family not in FAMILIES:
    raise UnreadableError(
      f"{str(folder / 'config.json')!r} says model_type {family!r}; this library reads "
      f"{list(FAMILIES)} (Flan and ByT5 are stored as one of them)."
    )
  tensors = _tensors(folder)
  arrays, unknown = {}, []
  table = next((t for t in TABLES if f"{t}.weight" in tensors), "shared")
  for name, lazy in tensors.items():
    bare = name.removesuffix(".weight")
    if bare in TABLES:
      if bare != table:
        continue
      name = "shared.weight"
    here = name_here(name)
    if here is None:
      unknown.append(name)
    else:
      arrays[here[0]] = _transposed(lazy) if here[1] else lazy
  if unknown:
    raise UnreadableError(
      f"{str(folder)!r} holds weights that no T5 has: {', '.join(sorted(unknown)[:8])}."
    )
  scaled = fields.get("scale_decoder_outputs")
  if scaled is None:
    # An mT5 never scales.
    scaled = family != "mt5" and fields.get("tie_word_embeddings", True)
  if "decoder/logits_dense/kernel" not in arrays and not scaled:
    # Logits from the shared table without T5 1.0's scale: a kernel of their own here.
    arrays["decoder/logits_dense/kernel"] = _transposed(
      arrays["token_embedder/embedding"]
    )
  config = _config(fields, arrays, folder)
  return Source(folder, config, arrays, vocabulary=_vocabulary(folder, config))


def _config(
  fields: Mapping[str, Any], arrays: Mapping[str, Lazy], folder: pathlib.Path
) -> T5Config:
  try:
    gated = fields.get("feed_forward_proj", "relu") in ("gated-gelu", "gated-gelu_new")
    if not gated and fields.get("feed_forward_proj", "relu") != "relu":
      raise ValueError(f"feed_forward_proj {fields['feed_forward_proj']!r} is unknown")
    layers = fields["num_layers"]
    return T5Config(
      vocab_size=arrays["token_embedder/embedding"].shape[0],
      emb_dim=fields["d_model"],
      num_heads=fields["num_heads"],
      head_dim=fields["d_kv"],
      mlp_dim=fields["d_ff"],
      num_encoder_layers=layers,
      num_decoder_layers=fields.get("num_decoder_layers") or layers,
      mlp_activations=("gelu", "linear") if gated else ("relu",),
      logits_via_embedding="decoder/logits_dense/kernel" not in arrays,
      relative_buckets=fields.get("relative_attention_num_buckets", 32),
      relative_max_distance=fields.get("relative_attention_max_distance", 128),
    )
  except (KeyError, TypeError, ValueError) as error:
    raise UnreadableError(
      f"{str(folder)!r} describes no T5 that this library knows: {error}."
    ) from error


def _vocabulary(folder: pathlib.Path, config: T5Config) -> str | None:
  for name in ("spiece.model", "sentencepiece.model"):
    if (folder / name).is_file():
      return str(folder / name)
  tokenizer = folder / "tokenizer_config.json"
  kind = _json(tokenizer).get("tokenizer_class") if tokenizer.is_file() else None
  return "bytes" if kind == "ByT5Tokenizer" or config.vocab_size == 384 else None


def _json(path: pathlib.Path) -> dict[str, Any]:
  try:
    found = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError, RecursionError) as error:
    raise UnreadableError(f"{str(path)!r} cannot be read: {error}.") from error
  if not isinstance(found, dict):
    raise UnreadableError(f"{str(path)!r} holds {type(found).__name__}, not an object.")
  return found


def _tensors(folder: pathlib.Path) -> dict[str, Lazy]:
  if (folder / INDEX).is_file():
    places = _json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict):
      raise UnreadableError(f"{str(folder / INDEX)!r} has no `weight_map`.")
    shards = sorted({str(shard) for shard in places.values()})
  elif (folder / SINGLE).is_file():
    places, shards = None, [SINGLE]
  else:
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    also = f" (its {pickled} are pickles; save it again as safetensors)"
    raise UnreadableError(
      f"{str(folder)!r} holds neither {SINGLE} nor {INDEX}{also if pickled else ''}."
    )
  found: dict[str, Lazy] = {}
  for shard in shards:
    path = folder / shard
    if pathlib.PurePath(shard).name != shard or not path.is_file():
      raise UnreadableError(f"The shard {shard!r} of {str(folder)!r} is missing.")
    for name, shape in _header(path).items():
      found[name] = Lazy(shape, _reader(path, name))
  missing = sorted(set(places or ()) - set(found))
  if missing:
    raise UnreadableError(
      f"{str(folder)!r} lacks weights that its index names: {', '.join(missing[:8])}."
    )
  return found


def _header(path: pathlib.Path) -> dict[str, tuple[int, ...]]:
  try:
    with safe_open(str(path), framework="flax") as file:
      return {
        name: tuple(file.get_slice(name).get_shape())
        for name in file.keys()  # noqa: SIM118  no mapping
      }
  except Exception as error:  # the reader has an exception type of its own
    raise UnreadableError(f"{str(path)!r} is damaged: {error}.") from error


def _reader(path: pathlib.Path, name: str) -> Any:
  def read() -> np.ndarray:
    try:
      with safe_open(str(path), framework="flax") as file:
        return np.asarray(file.get_tensor(name))
    except Exception as error:
      raise UnreadableError(f"{str(path)!r} is damaged at {name}: {error}.") from error

  return read


def _transposed(lazy: Lazy) -> Lazy:
  return Lazy(lazy.shape[::-1], lambda: np.ascontiguousarray(lazy.read().T))


def names_there(config: T5Config) -> dict[str, tuple[str, bool]]:
  """T5X name -> (Hugging Face name, whether to transpose), for every weight."""
  found = {}
  for side, depth in (
    ("encoder", config.num_encoder_layers),
    ("decoder", config.num_decoder_layers),
  ):
    names = [f"{side}.final_layer_norm.weight"]
    names.append(f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight")
    weights = (
      ("wi_0", "wi_1", "wo") if len(config.mlp_activations) > 1 else ("wi", "wo")
    )
    for layer in range(depth):
      for (stack, number, part), ours in SUBLAYERS.items():
        if stack != side:
          continue
        start = f"{side}.block.{layer}.layer.{number}"
        names.append(f"{start}.layer_norm.weight")
        for weight in weights if ours == "mlp" else ATTENTION:
          names.append(f"{start}.{part}.{weight}.weight")
    for name in names:
      ours, transposed = name_here(name)
      found[ours] = (name, transposed)
  found["token_embedder/embedding"] = ("shared.weight", False)
  if not config.logits_via_embedding:
    found["decoder/logits_dense/kernel"] = ("lm_head.weight", True)
  return found


def write(
  folder: str | pathlib.Path,
  backbone: T5,
  params: Any,
  vocabulary: str | pathlib.Path | None = None,
  dtype: Any = None,
) -> None:
  """Writes a folder that transformers' `T5ForConditionalGeneration` loads.

  Args:
    folder: replaced if it exists; whole or not at all.
    backbone: architecture. params: its weights, scanned or not.
    vocabulary: SentencePiece file to put beside them as spiece.model.
    dtype: cast the weights (loses precision where it is narrower), None to keep theirs.
  """
  config = dataclasses.replace(backbone.config, scan_layers=False)
  names = names_there(config)
  weights = {}
  for ours, value in flatten(unstack_layers(params)).items():
    theirs, transposed = names[ours]
    value = np.asarray(value) if dtype is None else np.asarray(value).astype(dtype)
    weights[theirs] = np.ascontiguousarray(value.T) if transposed else value
  kinds = {str(value.dtype) for value in weights.values()}
  with whole_folder(folder) as aside:
    text = json.dumps(
      _fields(config, kinds.pop() if len(kinds) == 1 else None), indent=2
    )
    (aside / "config.json").write_text(text + "\n", encoding="utf-8")
    metadata = {"format": "pt"}
    safetensors_numpy.save_file(weights, str(aside / SINGLE), metadata=metadata)
    if vocabulary is not None:
      shutil.copyfile(vocabulary, aside / "spiece.model")


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

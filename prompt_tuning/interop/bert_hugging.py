"""Hugging Face folders of a BERT, RoBERTa or XLM-R, with and without heads.

The tensors say which heads there are: a missing pooler or head of masked words is no
damage, and heads of other kinds (of classes, of spans) are left where they are.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from prompt_tuning.backbones.bert.backbone import Bert
from prompt_tuning.backbones.bert.config import KINDS, BertConfig
from prompt_tuning.backbones.common import int8
from prompt_tuning.backbones.common.stacking import Leaf, unrolled
from prompt_tuning.core.folders import whole_folder
from prompt_tuning.interop import bert_marks, places, shards, untrusted
from prompt_tuning.interop import vocabulary as vocabulary_files
from prompt_tuning.interop.bert_names import BODY, name_here, names_there
from prompt_tuning.interop.lazy import Lazy, UnreadableError, transposed
from prompt_tuning.interop.source import Source

ACTIVATIONS = {
  "gelu": "gelu",
  "gelu_new": "gelu_tanh",
  "gelu_pytorch_tanh": "gelu_tanh",
  "relu": "relu",
}
# Field of config.json -> (what its absence means, values that this network computes).
FIXED = {
  "position_embedding_type": ("absolute", ("absolute", None)),
  "is_decoder": (False, (False, None)),
  "add_cross_attention": (False, (False, None)),
  "hidden_act": ("gelu", tuple(ACTIVATIONS)),
}
TIED = ("cls.predictions.decoder", "lm_head.decoder")
_LEFT = re.compile(
  r"(.+\.)?embeddings\.position_ids|cls\.seq_relationship\..+|classifier\..+|"
  r"qa_outputs\..+|score\..+"
)


def open_source(folder: Any) -> Source:
  """Reads the configuration and the names; no weights but those that must be equal.

  Raises:
    UnreadableError: for another architecture, a missing or damaged file, or weights
      that are no part of it or not those that config.json describes.
  """
  path = folder / "config.json"
  fields = untrusted.read_object(path)
  kind = fields.get("model_type")
  for name, (default, known) in FIXED.items():
    if fields.get(name, default) not in known:
      raise UnreadableError(
        f"{str(path)!r} says {name} {fields[name]!r}; this library's encoders know "
        f"{', '.join(map(repr, known))}."
      )
  arrays = _named(shards.tensors(folder), kind, str(folder))
  config = _config(fields, arrays, kind, folder)
  vocabulary = places.vocabulary(folder, config.vocab_size)
  config = bert_marks.marked(config, vocabulary)
  return Source(folder, config, arrays, vocabulary=vocabulary, family=Bert)


def _named(tensors: Mapping[str, Lazy], kind: str, where: str) -> dict[str, Lazy]:
  """Our name -> array."""
  arrays: dict[str, Lazy] = {}
  tied, unknown, spelled = {}, [], set()
  for name, lazy in tensors.items():
    if _LEFT.fullmatch(name):
      continue
    bare = name.removeprefix(BODY[kind])
    module, _, part = bare.rpartition(".")
    if module in TIED:
      tied[part] = lazy
      continue
    here = name_here(bare, kind)
    if here is None:
      unknown.append(name)
      continue
    if re.search(r"layer_?norm", module, re.IGNORECASE):
      spelled.add("old" if part in ("gamma", "beta") else "new")
    arrays[here[0]] = transposed(lazy) if here[1] else lazy
  if unknown:
    raise UnreadableError(
      f"{where!r} holds weights that no {kind} has here: "
      f"{', '.join(sorted(unknown)[:8])}."
    )
  if len(spelled) > 1:
    raise UnreadableError(
      f"{where!r} calls some norms' weights gamma and beta, others weight and bias: it "
      "is of two files. Copy it again."
    )
  if "token_embedder/embedding" not in arrays:
    raise UnreadableError(f"{where!r} holds no embeddings.word_embeddings.weight.")
  _check_tied(arrays, tied, where)
  return arrays


def _check_tied(arrays: dict[str, Lazy], tied: Mapping[str, Lazy], where: str) -> None:
  """The decoder of masked words must be the token table, its bias the head's."""
  twins = {"weight": "token_embedder/embedding", "bias": "masked_words/bias"}
  if "bias" in tied and "masked_words/dense/kernel" in arrays:
    # Some releases of transformers keep the bias there alone.
    arrays.setdefault(twins["bias"], tied["bias"])
  for part, lazy in tied.items():
    twin = arrays.get(twins[part])
    if twin is None or twin.shape != lazy.shape or not _equal(twin, lazy):
      raise UnreadableError(
        f"{where!r} holds a decoder.{part} of masked words that is not the "
        f"{'token table' if part == 'weight' else 'bias of its head'}; this library "
        "ties the two."
      )


def _equal(one: Lazy, other: Lazy) -> bool:
  step = 4096
  for start in range(0, one.shape[0], step):
    rows = (slice(start, start + step), *[slice(None)] * (len(one.shape) - 1))
    if not np.array_equal(one.read(rows), other.read(rows)):
      return False
  return True


def _config(
  fields: Mapping[str, Any], arrays: Mapping[str, Lazy], kind: str, folder: Any
) -> BertConfig:
  """The architecture of the arrays, which config.json must describe."""
  shapes = {name: lazy.shape for name, lazy in arrays.items()}
  vocab_size, width = shapes["token_embedder/embedding"]
  layers = {n.split("/")[1] for n in shapes if n.startswith("encoder/layers_")}
  found = {
    "vocab_size": vocab_size,
    "hidden_size": width,
    "num_hidden_layers": len(layers),
    "intermediate_size": shapes.get("encoder/layers_0/mlp/wi/bias", (0,))[0],
    "max_position_embeddings": shapes.get("embeddings/positions", (0,))[0],
    "type_vocab_size": shapes.get("embeddings/types", (0,))[0],
  }
  differ = [
    f"{name}: {fields.get(name)!r} in config.json, {size} in the weights"
    for name, size in found.items()
    if fields.get(name, 2 if name == "type_vocab_size" else None) != size
  ]
  if differ:
    raise UnreadableError(
      f"config.json and weights of {str(folder)!r} are not of one {kind}: "
      f"{'; '.join(differ)}. Copy both from the same model."
    )
  pad = fields.get("pad_token_id")
  pad = (0 if kind == "bert" else 1) if pad is None else pad
  names = "vocab_size", "emb_dim", "num_layers", "mlp_dim", "positions", "types"
  sizes = dict(zip(names, found.values(), strict=True))
  try:
    return BertConfig(
      **sizes,
      num_heads=fields.get("num_attention_heads"),
      first_position=0 if kind == "bert" else pad + 1,
      activation=ACTIVATIONS[fields.get("hidden_act", "gelu")],
      norm_epsilon=fields.get("layer_norm_eps", 1e-12),
      pooler="pooler/kernel" in shapes,
      mlm_head="masked_words/dense/kernel" in shapes,
      kind=kind,
      **bert_marks.stated(fields, kind, vocab_size, pad),
    )
  except (TypeError, ValueError) as error:
    raise UnreadableError(f"{str(folder / 'config.json')!r}: {error}") from error


def recognises(folder: Any) -> bool:
  """Whether a folder's config.json is that of such an encoder of Hugging Face."""
  try:
    return untrusted.read_object(folder / "config.json").get("model_type") in KINDS
  except UnreadableError:
    return False


def write(
  folder: str | pathlib.Path,
  backbone: Bert,
  params: Any,
  vocabulary: str | pathlib.Path | None = None,
  dtype: Any = None,
  shard_bytes: int = 5 << 30,
) -> None:
  """Writes config.json and safetensors that transformers loads.

  Args:
    folder: see `core.folders.whole_folder`. backbone: architecture.
    params: its weights, scanned or not. vocabulary: tokenizer.json or vocab.txt.
    dtype: cast the weights, None to keep theirs. shard_bytes: of one file at most.
  """
  int8.refuse(params, f"Writing {str(folder)!r}")
  config = dataclasses.replace(backbone.config, scan_layers=False)
  weights, names = {}, names_there(config)
  for ours, leaf in unrolled(params).items():
    theirs, turned = names[ours]
    kept = leaf.dtype if dtype is None else np.dtype(dtype)
    shape = leaf.shape[::-1] if turned else leaf.shape
    weights[theirs] = shards.Out(shape, kept, _maker(leaf, turned, kept))
  with whole_folder(folder) as aside:
    text = json.dumps(_fields(config), indent=2) + "\n"
    (aside / "config.json").write_text(text, encoding="utf-8")
    shards.save(aside, weights, shard_bytes)
    if vocabulary is not None:
      vocabulary_files.write(aside, str(vocabulary))


def _maker(leaf: Leaf, turned: bool, dtype: Any) -> Any:
  def make() -> np.ndarray:
    value = np.asarray(leaf.read()).astype(dtype, copy=False)
    return np.ascontiguousarray(value.T if turned else value)

  return make


def _fields(config: BertConfig) -> dict[str, Any]:
  acts = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
  stem = {"bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta"}
  head = "ForMaskedLM" if config.mlm_head else "Model"
  return {
    "architectures": [stem[config.kind] + head],
    "model_type": config.kind,
    "vocab_size": config.vocab_size,
    "hidden_size": config.emb_dim,
    "num_hidden_layers": config.num_layers,
    "num_attention_heads": config.num_heads,
    "intermediate_size": config.mlp_dim,
    "hidden_act": acts[config.activation],
    "layer_norm_eps": config.norm_epsilon,
    "max_position_embeddings": config.positions,
    "type_vocab_size": config.types,
    "pad_token_id": config.pad_id,
    "bos_token_id": config.first_id,
    "eos_token_id": config.last_id,
  }

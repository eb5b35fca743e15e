"""Names of a BERT's weights: Hugging Face's on one side, ours on the other.

Files with a head put `bert.` or `roberta.` before the body's names, bare ones nothing.
"""

import re

from prompt_tuning.backbones.bert.config import BertConfig

BODY = {"bert": "bert.", "roberta": "roberta.", "xlm-roberta": "roberta."}
TABLES = {
  "embeddings.word_embeddings.weight": "token_embedder/embedding",
  "embeddings.position_embeddings.weight": "embeddings/positions",
  "embeddings.token_type_embeddings.weight": "embeddings/types",
}
# A module there -> a module here; of the layers, without `encoder.layer.N.`.
NORMS = {"embeddings.LayerNorm": "embeddings/norm"}
DENSE = {"pooler.dense": "pooler"}
LAYER_NORMS = {
  "attention.output.LayerNorm": "attention_norm",
  "output.LayerNorm": "mlp_norm",
}
LAYER_DENSE = {
  "attention.self.query": "attention/query",
  "attention.self.key": "attention/key",
  "attention.self.value": "attention/value",
  "attention.output.dense": "attention/out",
  "intermediate.dense": "mlp/wi",
  "output.dense": "mlp/wo",
}
# The head of masked words: (its dense map, its norm, its bias).
MASKED_WORDS = {
  "bert": ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm")
  + ("cls.predictions.bias",),
  "roberta": ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),
}
MASKED_WORDS["xlm-roberta"] = MASKED_WORDS["roberta"]
# Of files from before the names of today.
OLD = {"gamma": "weight", "beta": "bias"}
_LAYER = re.compile(r"encoder\.layer\.(\d+)\.(.+)")


def name_here(name: str, kind: str) -> tuple[str, bool] | None:
  """(our name, whether to transpose) of a Hugging Face name; None if unknown.

  Args:
    name: without the prefix of the body. kind: `BertConfig.kind`.
  """
  if name in TABLES:
    return TABLES[name], False
  dense, norm, bias = MASKED_WORDS[kind]
  if name == bias:
    return "masked_words/bias", False
  layer = _LAYER.fullmatch(name)
  known = {**DENSE, dense: "masked_words/dense"}, {**NORMS, norm: "masked_words/norm"}
  start = ""
  if layer:
    start, name = f"encoder/layers_{layer.group(1)}/", layer.group(2)
    known = LAYER_DENSE, LAYER_NORMS
  module, _, part = name.rpartition(".")
  part = OLD.get(part, part)
  if module in known[0] and part in ("weight", "bias"):
    ours = "kernel" if part == "weight" else "bias"
    return f"{start}{known[0][module]}/{ours}", part == "weight"
  if module in known[1] and part in ("weight", "bias"):
    return f"{start}{known[1][module]}/{'scale' if part == 'weight' else 'bias'}", False
  return None


def names_there(config: BertConfig) -> dict[str, tuple[str, bool]]:
  """Our name -> (Hugging Face name, whether to transpose), for every weight."""
  dense, norms = dict(DENSE if config.pooler else {}), dict(NORMS)
  for layer in range(config.num_layers):
    start = f"encoder.layer.{layer}."
    dense |= {start + name: "" for name in LAYER_DENSE}
    norms |= {start + name: "" for name in LAYER_NORMS}
  body = [*TABLES, *_both(dense), *_both(norms)]
  heads = []
  if config.mlm_head:
    head, norm, bias = MASKED_WORDS[config.kind]
    heads = [*_both((head, norm)), bias]
  prefix = BODY[config.kind] if config.mlm_head else ""
  found = {}
  for name in [*body, *heads]:
    ours, turned = name_here(name, config.kind)
    found[ours] = (name if name in heads else prefix + name, turned)
  return found


def _both(modules: object) -> list[str]:
  return [f"{module}.{part}" for module in modules for part in ("weight", "bias")]

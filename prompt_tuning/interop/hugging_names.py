"""Names of a T5's weights: Hugging Face's on one side, T5X's on the other."""

import re

from prompt_tuning.backbones.t5.config import T5Config

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

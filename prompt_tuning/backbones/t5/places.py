"""The places of a T5, by name: what a prompt may act on, and how wide it is there.

  encoder.input  decoder.input           embeddings at virtual positions [H]
  encoder.kv  decoder.kv  cross.kv       keys and values of attention [J = N * D]
  encoder.layers  decoder.layers         states at virtual positions, in each layer [H]
  encoder.offset                         embeddings of the text [H]
  STACK.INNER.scale  .shift  .weight     in every layer of a stack, where INNER is
    self.query self.key self.value self.out   cross.query ... cross.out (decoder)
    mlp.gate (T5 1.1) mlp.up mlp.down         mlp.hidden (scale alone)

  STACK.self.out.adapter  cross.out  mlp.down    behind a sublayer, before the residual

`scale` and `shift` act on what the kernel of that name gives, `mlp.hidden.scale` on
what `down` reads.
"""

import functools
from collections.abc import Mapping

from prompt_tuning.backbones.t5.config import T5Config
from prompt_tuning.core.context import Tables


@functools.cache
def places(config: T5Config) -> Mapping[str, Tables]:
  """Name -> what the place asks for."""
  H, J = config.emb_dim, config.num_heads * config.head_dim
  F = config.mlp_dim
  depths = {"encoder": config.num_encoder_layers, "decoder": config.num_decoder_layers}
  found = {f"{stack}.input": Tables(1, H) for stack in depths}
  found["encoder.offset"] = Tables(1, H)
  found |= {f"{stack}.layers": Tables(depth, H) for stack, depth in depths.items()}
  found |= {f"{stack}.kv": Tables(2 * depth, J) for stack, depth in depths.items()}
  found["cross.kv"] = Tables(2 * depths["decoder"], J)
  attention = {"query": (H, J), "key": (H, J), "value": (H, J), "out": (J, H)}
  names = ("up",) if len(config.mlp_activations) == 1 else ("gate", "up")
  mlp = {**{name: (H, F) for name in names}, "down": (F, H)}
  for stack, depth in depths.items():
    inner = {f"self.{name}": sizes for name, sizes in attention.items()}
    if stack == "decoder":
      inner |= {f"cross.{name}": sizes for name, sizes in attention.items()}
    inner |= {f"mlp.{name}": sizes for name, sizes in mlp.items()}
    for name, (inputs, outputs) in inner.items():
      found[f"{stack}.{name}.scale"] = Tables(depth, outputs)
      found[f"{stack}.{name}.shift"] = Tables(depth, outputs)
      found[f"{stack}.{name}.weight"] = Tables(depth, inputs + outputs, inputs)
    found[f"{stack}.mlp.hidden.scale"] = Tables(depth, F)
    for name in inner.keys() & {"self.out", "cross.out", "mlp.down"}:
      found[f"{stack}.{name}.adapter"] = Tables(depth, 2 * H, H)
  return found

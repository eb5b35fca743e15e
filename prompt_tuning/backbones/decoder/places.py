"""The places of a decoder, by name: what a prompt may act on, and how wide it is there.

  decoder.input     embeddings at virtual positions [H]
  decoder.kv        keys, turned already, and values of attention [J], J = G * D for G
                    heads of keys and values
  decoder.layers    states at virtual positions, in each layer [H]
  decoder.offset    embeddings of the text [H]
  decoder.INNER.scale  .shift  .weight     in every layer, where INNER is
    self.query self.key self.value self.out
    mlp.gate (where there is one) mlp.up mlp.down    mlp.hidden (scale alone)
  decoder.self.out.adapter  decoder.mlp.down.adapter    before the residual

`scale` and `shift` act on what the kernel of that name gives, before it is turned;
`mlp.hidden.scale` on what `down` reads.
"""

import functools
from collections.abc import Mapping

from prompt_tuning.backbones.decoder.config import DecoderConfig
from prompt_tuning.core.context import Tables


@functools.cache
def places(config: DecoderConfig) -> Mapping[str, Tables]:
  """Name -> what the place asks for."""
  H, J, F, L = config.emb_dim, config.joined, config.mlp_dim, config.num_decoder_layers
  wide = config.num_heads * config.head_dim
  found = {"input": Tables(1, H), "offset": Tables(1, H)}
  found |= {"layers": Tables(L, H), "kv": Tables(2 * L, J)}
  inner = {"query": (H, wide), "key": (H, J), "value": (H, J), "out": (wide, H)}
  inner = {f"self.{name}": sizes for name, sizes in inner.items()}
  if config.mlp_gated:
    inner["mlp.gate"] = (H, F)
  inner |= {"mlp.up": (H, F), "mlp.down": (F, H)}
  for name, (inputs, outputs) in inner.items():
    found[f"{name}.scale"] = Tables(L, outputs)
    found[f"{name}.shift"] = Tables(L, outputs)
    found[f"{name}.weight"] = Tables(L, inputs + outputs, inputs)
  found["mlp.hidden.scale"] = Tables(L, F)
  for name in ("self.out", "mlp.down"):
    found[f"{name}.adapter"] = Tables(L, 2 * H, H)
  return {f"decoder.{name}": tables for name, tables in found.items()}

"""The places of a BERT, by name: what a prompt may act on, and how wide it is there.

They are named as those of a T5's encoder, so that a method's file means the same here:

  encoder.input                  rows of the token table at virtual positions [H]
  encoder.kv                     keys and values of attention [J = H]
  encoder.layers                 states at virtual positions, in each layer [H]
  encoder.offset                 rows of the token table of the text [H]
  encoder.INNER.scale  .shift  .weight     in every layer, where INNER is
    self.query self.key self.value self.out  mlp.up mlp.down; mlp.hidden (scale alone)
  encoder.self.out.adapter  encoder.mlp.down.adapter    behind a sublayer, before the
                                                         residual and the norm

A row of "encoder.input" stands for a word: the rows of its position and type are added
to it, and the norm of the embeddings follows.
"""

import functools
from collections.abc import Mapping

from prompt_tuning.backbones.bert.config import BertConfig
from prompt_tuning.core.context import Tables


@functools.cache
def places(config: BertConfig) -> Mapping[str, Tables]:
  """Name -> what the place asks for."""
  H, F, L = config.emb_dim, config.mlp_dim, config.num_layers
  found = {
    "encoder.input": Tables(1, H),
    "encoder.offset": Tables(1, H),
    "encoder.layers": Tables(L, H),
    "encoder.kv": Tables(2 * L, H),
    "encoder.mlp.hidden.scale": Tables(L, F),
  }
  inner = {f"self.{name}": (H, H) for name in ("query", "key", "value", "out")}
  inner |= {"mlp.up": (H, F), "mlp.down": (F, H)}
  for name, (inputs, outputs) in inner.items():
    found[f"encoder.{name}.scale"] = Tables(L, outputs)
    found[f"encoder.{name}.shift"] = Tables(L, outputs)
    found[f"encoder.{name}.weight"] = Tables(L, inputs + outputs, inputs)
  for name in ("self.out", "mlp.down"):
    found[f"encoder.{name}.adapter"] = Tables(L, 2 * H, H)
  return found

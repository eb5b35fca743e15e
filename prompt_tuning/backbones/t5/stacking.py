"""The two forms of a T5's weights, see `backbones.common.stacking`."""

from prompt_tuning.backbones.common import stacking
from prompt_tuning.backbones.common.stacking import (
  Leaf,
  Params,
  unrolled,
  unstack_layers,
)
from prompt_tuning.backbones.t5.config import T5Config

__all__ = ["Leaf", "stack_layers", "unrolled", "unstack_layers"]


def stack_layers(params: Params, config: T5Config) -> Params:
  """Puts the layers of both stacks into one branch each.

  Raises:
    ValueError: the layers found are not those that `config` asks for.
  """
  depths = {
    "encoder": config.num_encoder_layers,
    "decoder": config.num_decoder_layers,
  }
  return stacking.stack_layers(params, depths, "T5Config.num_{}_layers")

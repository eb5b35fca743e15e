"""The two forms of a BERT's weights, see `backbones.common.stacking`."""

from prompt_tuning.backbones.bert.config import BertConfig
from prompt_tuning.backbones.common import stacking
from prompt_tuning.backbones.common.stacking import Params


def stack_layers(params: Params, config: BertConfig) -> Params:
  """Puts the layers into one branch.

  Raises:
    ValueError: the layers found are not those that `config` asks for.
  """
  depths = {"encoder": config.num_layers}
  return stacking.stack_layers(params, depths, "BertConfig.num_layers")

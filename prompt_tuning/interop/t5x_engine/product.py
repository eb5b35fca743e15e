"""Takes a prompt that T5X trained out of its checkpoint, as our `prompt/` folder.

python -m prompt_tuning.interop.t5x_engine.product --gin_file=gin/t5x/product.gin ...
"""

from collections.abc import Mapping, Sequence
from typing import Any

from prompt_tuning.backbones.common import stored
from prompt_tuning.core import trainable as branches
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.data.features import Layout
from prompt_tuning.engine import config, loop
from prompt_tuning.engine.facts import card_facts, product_of
from prompt_tuning.interop import load
from prompt_tuning.interop.t5x_engine import start, tree


def collect(
  checkpoint_path: str,
  output_dir: str,
  prompt: Any,
  method: str,
  trainable: Sequence[str],
  task: Any,
  task_feature_lengths: Mapping[str, int],
  backbone: Any = None,
  vocabulary: Any = None,
  prompt_place: str = "front",
) -> None:
  """Writes `output_dir`, whole or not at all; T5X itself is not needed.

  Args:
    checkpoint_path: what T5X wrote, see `start.checkpoint`. output_dir: to write.
    prompt, method, trainable, task, task_feature_lengths, backbone, prompt_place: as in
      the training run.
    vocabulary: of the backbone.

  Raises:
    ValueError: if the checkpoint holds no such prompt.
  """
  if prompt is None:
    raise ValueError(
      "The method has no prompt to take out: T5X's checkpoint is the model itself. "
      "Give it as INITIAL_CHECKPOINT_PATH."
    )
  step = start.checkpoint(checkpoint_path)
  loaded = load.load(step, backbone, vocabulary)
  found = start.source(step)
  flat = {name: lazy.read() for name, lazy in found.prompts.items()}
  there = branches.flatten(tree.from_t5x(branches.unflatten(flat), prompt))
  model = PromptedModel(loaded.backbone, prompt)
  wanted = branches.flatten({"prompt": model.prompt_shapes(loaded.params)})
  stored.check_names(wanted, there, step)
  params = branches.unflatten(there)
  sizes = task_feature_lengths["inputs"], task_feature_lengths["targets"]
  layout = Layout.of(model, *sizes, prompt_place, truncate=True)
  facts = card_facts(loaded, method, layout, task, config.text())
  best = loop.Best(found.step or 0)
  trained, _ = branches.split(params, trainable)
  product_of(model, params, trained, facts, best).save(output_dir)


if __name__ == "__main__":
  from prompt_tuning.interop.t5x_engine import product as verb

  config.run_verb(verb.collect)

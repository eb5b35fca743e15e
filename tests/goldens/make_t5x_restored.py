"""Has upstream T5X restore what this library writes, and notes what that was.

  PYTHONPATH=.:tests python tests/goldens/make_t5x_restored.py

Writes the tiny backbones of `weights.py`, with a prompt in T5X's branch, through
`interop.t5x.write_legacy` and `write_orbax`; T5X restores each into the train state of
its own minimal network, once as `t5x.infer` does (no optimiser) and once as `t5x.train`
does (an optimiser that starts from scratch). Every parameter must come back bit for
bit. Then t5x_restored.json is written beside this file: the names and digests of what
T5X has restored, which the tests hold against what is written today. Made with T5X of
21 April 2026 (commit cc342d4), jax 0.10.2, flax 0.12.8, orbax-checkpoint 0.12.8.
"""

import json
import pathlib
import tempfile

import flax.core
import jax
import numpy as np
import t5x_tools
from flax.linen import partitioning as partition
from goldens import weights
from t5x import adafactor, decoding, models, partitioning, utils
from t5x.examples.t5 import network

HERE = pathlib.Path(__file__).parent
SHAPES = {name: (1, 4) for name in ("encoder_input_tokens", "decoder_input_tokens")}


class Model(models.EncoderDecoderModel):
  """T5X's model with one parameter more, so that the prompt has a place to go."""

  def get_initial_variables(self, rng, input_shapes, input_types=None):
    types = {name: np.int32 for name in input_shapes}
    found = flax.core.unfreeze(super().get_initial_variables(rng, input_shapes, types))
    H = self.module.config.emb_dim
    found["params"]["encoder"]["prompt"] = {
      "prompt": {"prompt": np.zeros((3, H), np.float32)}
    }
    axes = partition.AxisMetadata(("prompt", "prompt_embed"))
    branch = {"prompt": {"prompt_axes": axes}}
    found["params_axes"]["encoder"]["prompt"] = branch
    return found


def restore(step: pathlib.Path, config: dict, train: bool) -> dict:
  """The parameters and the step that T5X restores."""
  module = network.Transformer(network.T5Config(**config))
  optimizer = adafactor.Adafactor(0.3) if train else None
  model = Model(module, None, None, optimizer, decoding.beam_search)
  rules = [("prompt", None), ("prompt_embed", None)]
  partitioner = partitioning.PjitPartitioner(
    num_partitions=1,
    logical_axis_rules=partitioning.standard_logical_axis_rules(additional_rules=rules),
  )
  initializer = utils.TrainStateInitializer(
    optimizer, model.get_initial_variables, SHAPES, partitioner
  )
  scratch = [("state/param_states/.*", None)] if train else None
  wanted = utils.RestoreCheckpointConfig(
    path=str(step),
    mode="specific",
    strict=False,
    assignment_map=scratch,
    fallback_to_scratch=train,
  )
  state, _ = utils.create_checkpoint_manager_and_restore(
    initializer, partitioner, wanted, str(step), jax.random.PRNGKey(0), use_orbax=True
  )
  return {
    "params": jax.device_get(flax.core.unfreeze(state.params)),
    "step": int(state.step),
  }


def check(kind: str, name: str) -> dict:
  with tempfile.TemporaryDirectory() as folder:
    step = t5x_tools.write(pathlib.Path(folder), kind, name)
    for train in (False, True):
      found = restore(step, weights.CONFIGS[name], train)
      assert found["step"] == t5x_tools.STEP, found["step"]
      jax.tree.map(np.testing.assert_array_equal, t5x_tools.tree(name), found["params"])
      print(f"{name} {kind} {'train' if train else 'infer'}: restored bit for bit")
    return t5x_tools.content(step)


def main() -> None:
  found = {
    f"{name}/{kind}": check(kind, name)
    for name in weights.CONFIGS
    for kind in t5x_tools.FORMATS
  }
  text = json.dumps(found, indent=1, sort_keys=True)
  (HERE / "t5x_restored.json").write_text(text + "\n")


if __name__ == "__main__":
  main()

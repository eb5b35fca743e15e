"""Upstream T5X trains our prompts as our own engine does. Skipped where T5X is not.

T5X is on no package index: put its repository, and those of airio and jestimator, on
the path, and install the extra `t5x`. The verbs run as a user types them, so all of it
takes a quarter of an hour. Last run with T5X cc342d4, airio 69897df, jestimator 326824a
(their heads in April 2026), jax 0.10.2, flax 0.12.8, optax 0.2.8, orbax-checkpoint
0.12.8, seqio 0.0.20, clu 0.0.12, tensorflow-cpu 2.21.0, tensorboard 2.21.0,
cached_property 2.0.1, fiddle 0.3.1 and grain 0.2.18, on Python 3.11.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import method_tools as tools
import numpy as np
import optax
import pytest
import tensorstore as ts
from flax.core import freeze

pytest.importorskip("t5x.train", reason="T5X is not installed")

from t5x import adafactor, checkpoints, decoding, models, partitioning, utils
from t5x import trainer as trainer_lib
from t5x.examples.t5 import network

from prompt_tuning.core import trainable as branches
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.data import vocabularies
from prompt_tuning.data.features import Layout
from prompt_tuning.engine import config, evaluate, optimizer, state, step
from prompt_tuning.engine.ready import initial_params
from prompt_tuning.interop import load, prompts, t5x
from prompt_tuning.interop.t5x_engine import product, tree
from prompt_tuning.interop.t5x_engine.model import PromptModel
from prompt_tuning.objectives.cross_entropy import CrossEntropy

ROOT = pathlib.Path(__file__).parent.parent
STEPS, LENGTH, BATCH = 4, 5, 32
SIZES = {
  "vocab_size": 8192,
  "emb_dim": 16,
  "num_heads": 2,
  "head_dim": 8,
  "mlp_dim": 32,
  "num_encoder_layers": 2,
  "num_decoder_layers": 2,
  "mlp_activations": ("gelu", "linear"),
}
# T5X carries neither vectors nor the task of an example.
LEFT_OUT = re.compile(r"unprompted|s_idpg_phm_external|task_prompts.*|mpt")
METHODS = [
  name
  for name in tools.METHODS
  if not LEFT_OUT.fullmatch(name) and name not in tools.HEADED
]


def partitioner(parts=1):
  rules = partitioning.standard_logical_axis_rules(additional_rules=tree.rules())
  return partitioning.PjitPartitioner(num_partitions=parts, logical_axis_rules=rules)


@pytest.fixture(scope="module")
def upstream(tmp_path_factory):
  """A checkpoint that T5X wrote of its own network, with an optimiser's state."""
  folder = tmp_path_factory.mktemp("upstream")
  rule = adafactor.Adafactor(
    0.3, logical_factor_rules=adafactor.standard_logical_factor_rules()
  )
  module = network.Transformer(network.T5Config(**SIZES))
  model = models.EncoderDecoderModel(module, None, None, rule, decoding.beam_search)
  shapes = {name: (1, 4) for name in ("encoder_input_tokens", "decoder_input_tokens")}
  over = partitioner()
  initializer = utils.TrainStateInitializer(
    rule, model.get_initial_variables, shapes, over, dict.fromkeys(shapes, np.int32)
  )
  begin = initializer.from_scratch(jax.random.PRNGKey(0)).replace_step(np.int32(7))
  manager = checkpoints.OrbaxCheckpointManagerInterface(
    str(folder), initializer.global_train_state_shape, over, save_dtype=np.float32
  )
  manager.save(begin)
  manager.close()
  assert (folder / "checkpoint_7").is_dir()
  return folder


@pytest.fixture(scope="module")
def vocabulary(vocabulary_file):
  return vocabularies.sentencepiece(vocabulary_file)


def run(verb, vocabulary_file, *flags, devices=1, method="prompt_tuning"):
  """What a user types, from the checkout."""
  parts = ["tasks/demo_sentiment", f"methods/{method}", "outputs/choice"]
  quick = f"--xla_force_host_platform_device_count={devices}"
  command = [sys.executable, "-m", f"t5x.{verb}", f"--gin_file=gin/t5x/{verb}.gin"]
  command += [f"--gin_file=gin/{part}.gin" for part in parts]
  command += [f"--gin.VOCABULARY_FILE='{vocabulary_file}'"]
  command += [f"--gin.BATCH_SIZE={BATCH}", *[f"--gin.{flag}" for flag in flags]]
  if method != "full_fine_tuning":
    command.append(f"--gin.PROMPT_LENGTH={LENGTH}")
  done = subprocess.run(
    command,
    cwd=ROOT,
    env={**os.environ, "XLA_FLAGS": quick},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-4000:]


def train(folder, upstream, vocabulary_file, *flags, **options):
  fixed = f"MODEL_DIR='{folder}'", f"INITIAL_CHECKPOINT_PATH='{upstream}'"
  steps = f"TRAIN_STEPS={STEPS}", f"EVAL_PERIOD={STEPS}", f"SAVE_PERIOD={STEPS}"
  few = "EVAL_STEPS=1", "EVALUATOR_NUM_EXAMPLES=8"
  run("train", vocabulary_file, *fixed, *steps, *few, *flags, **options)
  return folder


@pytest.fixture(scope="module")
def trained(upstream, vocabulary_file, tmp_path_factory):
  """MODEL_DIR of a short run of `python -m t5x.train`."""
  return train(tmp_path_factory.mktemp("trained"), upstream, vocabulary_file)


def source(folder, step=None):
  path = pathlib.Path(folder)
  return t5x.open_source(t5x.find(path if step is None else path / step))


def test_only_the_prompt_moves_and_our_reader_loads_it(trained, upstream, vocabulary):
  before, after = source(upstream), source(trained)
  assert (before.step, after.step) == (7, STEPS)
  assert set(before.arrays) == set(after.arrays)
  for name, lazy in before.arrays.items():
    assert lazy.read().tobytes() == after.arrays[name].read().tobytes(), name
  assert list(after.prompts) == [prompts.BRANCH]
  vectors = after.prompts[prompts.BRANCH].read()
  first = source(trained, "checkpoint_0").prompts[prompts.BRANCH].read()
  assert vectors.shape == (LENGTH, SIZES["emb_dim"])
  assert np.abs(vectors - first).min() > 0
  made = prompts.load(trained)
  np.testing.assert_array_equal(prompts.fold(made), vectors)
  loaded = load.load(str(upstream), vocabulary=vocabulary)
  config.parse(["gin/methods/prompt_tuning.gin"], [f"PROMPT_LENGTH = {LENGTH}"])
  model = PromptedModel(loaded.backbone, config.macro("PROMPT"))
  ours = initial_params(model, loaded.params, vocabulary, seed=0)["prompt"]
  np.testing.assert_array_equal(ours["parameterise"]["prompt"][0], first)


def test_the_optimiser_has_a_state_for_the_prompt_alone(trained):
  metadata = json.loads((trained / "checkpoint_4/state/_METADATA").read_text())
  names = {
    tuple(key["key"] for key in entry["key_metadata"])
    for entry in metadata["tree_metadata"].values()
  }
  states = {name[2] for name in names if name[:2] == ("state", "param_states")}
  assert any(name.endswith("prompt.parameterise.prompt") for name in states)
  assert not [n for n in states if "encoder" in n or "decoder" in n or "token" in n]


def answered(folder, made, vocabulary):
  """What our engine says of the task: a record an example, and scores."""
  loaded = load.load(str(folder), vocabulary=vocabulary)
  files = ["gin/tasks/demo_sentiment.gin", "gin/outputs/choice.gin"]
  config.parse(files, check=False)
  macros = config.macros("TASK OUTPUT TASK_FEATURE_LENGTHS")
  task, output, lengths = macros.values()
  layout = Layout(lengths["inputs"], lengths["targets"], LENGTH)
  model = PromptedModel(loaded.backbone, made.module)
  settings = CrossEntropy(), layout, vocabulary, task, output, BATCH
  ours = evaluate.Evaluator(model, *settings)
  params, rows = made.params(loaded.params), task.tokens(vocabulary, "validation")
  return ours.predict(params, rows), ours.scores(params, rows)


def test_eval_and_infer_answer_as_our_engine_does(
  trained, vocabulary_file, vocabulary, tmp_path
):
  where = f"CHECKPOINT_PATH='{trained}'"
  run("eval", vocabulary_file, where, f"EVAL_OUTPUT_DIR='{tmp_path / 'eval'}'")
  run("infer", vocabulary_file, where, f"INFER_OUTPUT_DIR='{tmp_path / 'infer'}'")
  records, scores = answered(trained, prompts.load(trained), vocabulary)
  metrics = next((tmp_path / "eval").rglob("*-metrics.jsonl")).read_text()
  assert json.loads(metrics)["accuracy"] == pytest.approx(scores["accuracy"])
  compare(tmp_path / "infer", records)


def compare(folder, records):
  """T5X's answers with ours."""
  (file,) = folder.glob("*.jsonl-00000-of-00001")
  theirs = [json.loads(line) for line in file.read_text().splitlines()]
  assert len(theirs) == len(records)
  for left, right in zip(theirs, records, strict=True):
    assert left["prediction"] == right["prediction"]
    best = max(right["scores"].values())
    assert left["aux"]["scores"] == pytest.approx(best, abs=1e-3)


def test_a_prompt_that_reads_its_input_comes_back_as_a_product(
  upstream, vocabulary_file, vocabulary, tmp_path
):
  method = "s_idpg_phm_embeddings"
  numbers = "PHM_ORDER=4", "GENERATOR_WIDTH=8"
  folder = tmp_path / "trained"
  train(folder, upstream, vocabulary_file, *numbers, method=method)
  where = f"CHECKPOINT_PATH='{folder}'", f"INFER_OUTPUT_DIR='{tmp_path / 'infer'}'"
  run("infer", vocabulary_file, *where, *numbers, method=method)
  files = [f"gin/{part}.gin" for part in ("t5x/product", "tasks/demo_sentiment")]
  macros = [f"PROMPT_LENGTH = {LENGTH}", f"CHECKPOINT_PATH = '{folder}'"]
  macros += [f"PROMPT_DIR = '{tmp_path / 'prompt'}'"]
  macros += [f"VOCABULARY_FILE = '{vocabulary_file}'", *numbers]
  config.parse([*files, f"gin/methods/{method}.gin"], macros)
  config.call(product.collect)
  made = prompts.load(tmp_path / "prompt")
  assert made.card["method"] == method and made.card["step"] == STEPS
  records, _ = answered(folder, made, vocabulary)
  compare(tmp_path / "infer", records)


def test_a_stopped_run_goes_on(trained, upstream, vocabulary_file, tmp_path):
  """`trained` once more, for two steps longer."""
  folder = shutil.copytree(trained, tmp_path / "again")
  train(folder, upstream, vocabulary_file, f"TRAIN_STEPS={STEPS + 2}")
  before, after = source(folder, f"checkpoint_{STEPS}"), source(folder)
  assert after.step == STEPS + 2
  vectors = [one.prompts[prompts.BRANCH].read() for one in (before, after)]
  assert np.abs(vectors[1] - vectors[0]).min() > 0
  # The count of the optimiser's state went on too.
  assert steps_counted(folder, STEPS + 2) == STEPS + 2


def steps_counted(folder, step):
  """How many updates the optimiser's state in a checkpoint has seen."""
  base = f"file://{folder / f'checkpoint_{step}' / 'state'}/"
  place = {"driver": "ocdbt", "base": base, "path": "state.param_states.0.count/"}
  return int(ts.open({"driver": "zarr", "kvstore": place}).result().read().result())


def test_sharded_over_two_devices(trained, upstream, vocabulary_file, tmp_path):
  """T5X gives all devices of a CPU to the axis `model`, which two heads divide."""
  folder = train(tmp_path, upstream, vocabulary_file, devices=2)
  lines = (folder / "model-info.txt").read_text().splitlines()
  specs = {line.split()[1]: line for line in lines if line.startswith("Variable")}
  for name, spec in {
    "token_embedder/embedding": "('model', None)",
    "encoder/layers_0/attention/query/kernel": "(None, 'model')",
    "encoder/layers_0/mlp/wo/kernel": "('model', None)",
    prompts.BRANCH: "(None, None)",
  }.items():
    assert specs[name].endswith(f"partition spec {spec}"), specs[name]
  one, two = (source(f).prompts[prompts.BRANCH].read() for f in (trained, folder))
  np.testing.assert_allclose(two, one, atol=1e-3)


# ---- in this process


class Vocabulary:
  """Letters as pieces; all that drawing a prompt asks for."""

  encode = staticmethod(tools.encode)


def t5x_trainer(case, settings):
  """T5X's trainer with the parameters of a case."""
  lengths = {"inputs": case.layout.inputs, "targets": case.layout.targets}
  model = PromptModel(
    tools.BACKBONE,
    case.method.prompt,
    Vocabulary(),
    lengths,
    CrossEntropy(),
    settings,
    case.method.trainable,
  )
  over = partitioner()
  initializer = utils.TrainStateInitializer(
    model.optimizer_def, model.get_initial_variables, {}, over
  )
  begin = initializer.from_scratch(jax.random.PRNGKey(0))
  params = freeze(tree.to_t5x(case.params, case.method.prompt))
  assert jax.tree.map(jax.numpy.shape, params) == jax.tree.map(
    jax.numpy.shape, begin.params
  )
  trainer = trainer_lib.Trainer(
    model,
    begin.replace_params(jax.tree.map(jax.numpy.array, params)),
    over,
    eval_names=[],
    summary_dir=None,
    train_state_axes=initializer.train_state_axes,
    rng=jax.random.PRNGKey(0),
    learning_rate_fn=settings.schedule,
    num_microbatches=None,
  )
  return trainer, initializer


def our_trainer(case, settings):
  trains, frozen = case.split
  transform = settings.build(trains)
  run = step.train_step(case.model, CrossEntropy(), transform, dropout=False)
  return jax.jit(run), state.create(trains, transform), frozen


def settings_of(case, rule):
  return optimizer.Optimizer(
    rule, optimizer.constant(case.method.rate), None, case.method.branch_rates
  )


@pytest.mark.parametrize("name", METHODS)
def test_a_step_of_every_method_is_that_of_our_engine(name, tmp_path):
  case = tools.case(name, tmp_path, GENERATOR_DROPOUT=0.0)
  settings = settings_of(case, optax.sgd)
  trainer, _ = t5x_trainer(case, settings)
  batch = case.batch()
  summary = trainer.train(iter([batch]), 1, start_step=0).result()
  found = branches.flatten(
    tree.from_t5x(jax.device_get(trainer.train_state.params), case.method.prompt)
  )
  run, begin, frozen = our_trainer(case, settings)
  after, metrics = run(begin, frozen, batch, jax.random.key(0))
  tools.assert_close(summary["loss"].value, metrics["loss"].compute())
  wanted = branches.flatten(branches.merge(after.trainable, frozen))
  assert set(found) == set(wanted)
  still = branches.flatten(frozen)
  for path, leaf in wanted.items():
    if path in still:
      assert np.asarray(leaf).tobytes() == found[path].tobytes(), path
    else:
      tools.assert_close(found[path], leaf)
  trainer.close()


@pytest.mark.parametrize("name", ["prompt_tuning", "s_idpg_phm_embeddings"])
def test_the_curve_of_losses_is_that_of_our_engine(name, tmp_path):
  case = tools.case(name, tmp_path, GENERATOR_DROPOUT=0.0)
  settings = settings_of(case, optimizer.Adafactor())
  trainer, _ = t5x_trainer(case, settings)
  run, now, frozen = our_trainer(case, settings)
  theirs, ours = [], []
  for number in range(8):
    batch = case.batch(tools.examples(seed=number))
    summary = trainer.train(iter([batch]), 1, start_step=number).result()
    theirs.append(float(summary["loss"].value))
    now, metrics = run(now, frozen, batch, jax.random.key(0))
    ours.append(float(metrics["loss"].compute()))
  trainer.close()
  print("T5X", theirs, "ours", ours)
  assert np.ptp(ours) > 0.01
  np.testing.assert_allclose(theirs, ours, rtol=1e-4)


def test_rates_of_branches_survive_both_checkpoints_of_t5x(tmp_path):
  case = tools.case("ipt_random_add", tmp_path)
  settings = settings_of(case, optimizer.Adafactor())
  trainer, initializer = t5x_trainer(case, settings)
  trainer.train(iter([case.batch()]), 1, start_step=0).result()
  trainer.close()
  now, shapes = trainer.train_state, initializer.global_train_state_shape
  kinds = {
    "orbax": checkpoints.OrbaxCheckpointManagerInterface,
    "legacy": lambda folder, *rest: checkpoints.Checkpointer(*rest, folder),
  }
  for name, make in kinds.items():
    folder = tmp_path / name
    folder.mkdir()
    manager = make(str(folder), shapes, partitioner())
    manager.save(now)
    if name == "orbax":
      manager.wait_until_finished()
    again = manager.restore(path=str(folder / "checkpoint_1"))
    left, right = (jax.device_get(s.state_dict()) for s in (again, now))
    jax.tree.map(np.testing.assert_array_equal, left, right)
    found = source(folder)
    assert {path.split("/")[1] for path in found.prompts} == {
      "condition",
      "transforms_0",
    }

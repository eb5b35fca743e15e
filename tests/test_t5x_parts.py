"""What upstream T5X is given, as far as it can be seen without T5X."""

import ast
import dataclasses
import pathlib
import re

import jax
import method_tools as tools
import numpy as np
import pytest
import seqio
import tensorflow as tf
from flax.core import freeze
from gin import config_parser

from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.core import trainable as branches
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.data import features, vocabularies
from prompt_tuning.data.lists import Lists
from prompt_tuning.data.mixtures import Mixture
from prompt_tuning.data.registered import Registered
from prompt_tuning.engine.ready import initial_params
from prompt_tuning.heads.pooled import Pooled
from prompt_tuning.interop import t5x
from prompt_tuning.interop.t5x_engine import __main__ as room
from prompt_tuning.interop.t5x_engine import start, tasks, tree
from prompt_tuning.interop.t5x_engine.features import VirtualPositions
from prompt_tuning.outputs.choice import Choice

ROOT = pathlib.Path(__file__).parent.parent
GIN = sorted((ROOT / "gin" / "t5x").glob("*.gin"))
PROMPTED = [
  name
  for name in tools.METHODS
  if "PROMPT = None" not in (ROOT / f"gin/methods/{name}.gin").read_text()
  and name not in tools.HEADED
]


# ---- virtual positions


EXAMPLES = [
  {"inputs": [5, 6, 7, 1], "targets": [8, 1], "mark": 2},
  {"inputs": [1], "targets": [1], "mark": 0},
  {"inputs": [9, 9, 9, 9, 9, 9, 1], "targets": [4, 4, 4, 4, 1], "mark": 6},
]


@pytest.mark.parametrize("place", features.PLACES)
@pytest.mark.parametrize("lengths", [(3, 0), (2, 4)])
def test_the_graph_lays_out_what_the_layout_does(place, lengths):
  layout = features.Layout(5, 3, *lengths, place, truncate=True)
  dataset = tf.data.Dataset.from_generator(
    lambda: iter(EXAMPLES),
    output_signature={
      "inputs": tf.TensorSpec([None], tf.int32),
      "targets": tf.TensorSpec([None], tf.int32),
      "mark": tf.TensorSpec([], tf.int32),
    },
  )
  converter = VirtualPositions(layout, apply_length_check=False)
  found = list(converter(dataset, {"inputs": 5, "targets": 3}).as_numpy_iterator())
  assert len(found) == len(EXAMPLES)
  for example, row in zip(EXAMPLES, found, strict=True):
    wanted = features.pad(layout.convert(example), layout.lengths)
    assert set(row) == set(wanted)
    for name, ids in wanted.items():
      np.testing.assert_array_equal(row[name], ids, err_msg=name)


def test_a_missing_mark_is_told():
  layout = features.Layout(5, 3, 2, place="mark")
  ids = {"inputs": [[5, 1]], "targets": [[6, 1]], "mark": [-1]}
  dataset = tf.data.Dataset.from_tensor_slices(
    {name: np.int32(value) for name, value in ids.items()}
  )
  rows = VirtualPositions(layout)(dataset, {"inputs": 5, "targets": 3})
  with pytest.raises(tf.errors.InvalidArgumentError, match="has no <prompt>"):
    next(iter(rows))


def test_packing_is_refused():
  with pytest.raises(ValueError, match="`utils.DatasetConfig.pack` is True"):
    VirtualPositions(features.Layout(5, 3), pack=True, use_custom_packing_ops=False)


# ---- parameters


def names_of(axes):
  return {path: leaf.names for path, leaf in branches.flatten(axes).items()}


@pytest.mark.parametrize("name", PROMPTED)
def test_every_method_has_a_place_and_axes_in_the_tree_of_t5x(name, tmp_path):
  case = tools.case(name, tmp_path)
  prompt = case.model.prompt
  there = tree.to_t5x(case.params, prompt)
  back = tree.from_t5x(freeze(there), prompt)
  left, right = branches.flatten(back), branches.flatten(case.params)
  assert set(left) == set(right)
  for path, leaf in right.items():
    np.testing.assert_array_equal(left[path], leaf, err_msg=path)
  flat = branches.flatten(there)
  backbone = branches.flatten(case.params["backbone"])
  assert set(backbone) < set(flat)
  extra = set(flat) - set(backbone)
  ours = {f"prompt/{path}" for path in branches.flatten(case.params["prompt"])}
  table_alone = ours == {"prompt/parameterise/prompt"}
  plain = table_alone and prompt.at.place == "encoder.input" and not prompt.transforms
  assert extra == ({"encoder/prompt/prompt/prompt"} if plain else ours)
  found = names_of(
    tree.axes(tools.BACKBONE.logical_axes(), case.params["prompt"], prompt)
  )
  assert set(found) == {f"{path}_axes" for path in flat}
  known = {rule for rule, _ in tree.rules()}
  for path, leaf in flat.items():
    names = found[f"{path}_axes"]
    assert len(names) == leaf.ndim and len(set(names)) == len(names)
    assert path not in extra or set(names) <= known


@pytest.mark.parametrize("name", ["prompt_tuning", "s_idpg_dnn_embeddings"])
def test_the_first_prompt_is_that_of_our_engine(name, tmp_path):
  method = tools.load(name, tmp_path)
  model = PromptedModel(tools.BACKBONE, method.prompt)
  weights = tools.backbone_params()
  t5x.write_legacy(tmp_path / "model", tools.BACKBONE, weights, step=3)

  class Vocabulary:
    encode = staticmethod(tools.encode)

  wanted = initial_params(model, weights, Vocabulary(), seed=4)["prompt"]
  table = start.table(str(tmp_path / "model"))
  found = start.draw(model, table, tools.encode, seed=4)
  jax.tree.map(tools.assert_close, found, wanted)


# ---- where a run starts


def test_checkpoints_are_found_by_any_of_their_names(tmp_path):
  t5x.write_legacy(tmp_path / "m", tools.BACKBONE, tools.backbone_params(), step=3)
  step = tmp_path / "m" / "checkpoint_3"
  for path in (tmp_path / "m", step, step / "checkpoint"):
    assert start.checkpoint(str(path)) == str(step)
  assert start.checkpoint(None) is None
  assert start.architecture(str(step)).config == tools.BACKBONE.config
  with pytest.raises(ValueError, match="no T5X checkpoint"):
    start.checkpoint("mini")
  with pytest.raises(ValueError, match="`BACKBONE` is None"):
    start.architecture(None)


def test_what_t5x_cannot_run_is_refused(tmp_path):
  scanned = T5(dataclasses.replace(tools.BACKBONE.config, scan_layers=True))
  with pytest.raises(ValueError, match="`SCAN_LAYERS` is True"):
    start.check(scanned, None, None, None)
  external = tools.load("s_idpg_phm_external", tmp_path).prompt
  with pytest.raises(ValueError, match="external vectors"):
    start.check(tools.BACKBONE, external, None, None)
  with pytest.raises(ValueError, match="`OUTPUT` is a choice .* no `labels`"):
    start.check(tools.BACKBONE, None, Choice(), None)
  numbered = tools.load("task_prompts", tmp_path).prompt
  with pytest.raises(ValueError, match="the task of each example"):
    start.check(tools.BACKBONE, numbered, None, None)
  start.check(tools.BACKBONE, None, Choice(), ["yes", "no"])
  with pytest.raises(ValueError, match="`HEAD` is given, but T5X trains no head"):
    start.check(tools.BACKBONE, None, None, None, Pooled(2))


# ---- tasks


def pairs(word):
  return [(f"{word} {i}", "yes") for i in range(3)]


def test_tasks_are_registered_once(vocabulary_file):
  vocabulary = vocabularies.sentencepiece(vocabulary_file)

  def made(word="soup"):
    return Lists(train=pairs(word), name="t5x_parts")

  for _ in range(2):
    assert tasks.registered(made(), vocabulary) == "t5x_parts"
  known = seqio.get_mixture_or_task("t5x_parts")
  dataset = known.get_dataset({"inputs": 9, "targets": 9}, "train", shuffle=False)
  texts = [row["inputs_pretokenized"] for row in dataset.as_numpy_iterator()]
  assert texts == [b"soup 0", b"soup 1", b"soup 2"]
  with pytest.raises(ValueError, match="knows another task named 't5x_parts'"):
    tasks.registered(made("bread"), vocabulary)


def test_mixtures_and_registered_tasks_keep_their_names(vocabulary_file):
  vocabulary = vocabularies.sentencepiece(vocabulary_file)
  parts = [Lists(train=pairs(word), name=f"t5x_{word}") for word in ("soup", "bread")]
  mixed = Mixture(parts, name="t5x_mixed")
  assert tasks.registered(mixed, vocabulary) == "t5x_mixed"
  names = {task.name for task in seqio.MixtureRegistry.get("t5x_mixed").tasks}
  assert names == {"t5x_soup", "t5x_bread"} <= set(seqio.TaskRegistry.names())
  assert tasks.registered(Registered("t5x_soup"), vocabulary) == "t5x_soup"


# ---- gin, read without T5X


class Lint(config_parser.ParserDelegate):
  """Notes what a gin file reads, and makes nothing of it."""

  def __init__(self):
    self.macros = set()

  def configurable_reference(self, scoped_name, evaluate):
    return scoped_name

  def macro(self, name):
    self.macros.add(name)
    return name


def statements(path):
  delegate = Lint()
  found = list(config_parser.ConfigParser(path.read_text(), delegate))
  return found, delegate.macros


def of_kind(found, kind):
  return [item for item in found if type(item).__name__ == kind]


def macros_set(path):
  """Macros that a file sets, or one of our files that it includes."""
  found, _ = statements(path)
  names = {b.selector for b in of_kind(found, "BindingStatement") if not b.arg_name}
  for include in of_kind(found, "IncludeStatement"):
    if not include.filename.startswith("t5x/"):
      names |= macros_set(ROOT / include.filename)
  return names


@pytest.mark.parametrize("path", GIN, ids=lambda path: path.stem)
def test_gin_files_for_t5x_are_whole(path):
  found, read = statements(path)
  assert not read - macros_set(path) - {"gin.REQUIRED"}
  modules = {}
  for item in of_kind(found, "ImportStatement"):
    if item.module.startswith("prompt_tuning."):
      file = ROOT / (item.module.replace(".", "/") + ".py")
      modules[item.bound_name()] = ast.parse(file.read_text())
  for binding in of_kind(found, "BindingStatement"):
    alias, _, name = binding.selector.rpartition(".")
    if alias in modules:
      assert binding.arg_name in parameters(modules[alias], name), binding


def parameters(module, name):
  """Parameters of a function, or fields or constructor of a class, in a file."""
  (node,) = (n for n in module.body if getattr(n, "name", None) == name)
  if isinstance(node, ast.ClassDef):
    fields = {n.target.id for n in node.body if isinstance(n, ast.AnnAssign)}
    made = [n for n in node.body if getattr(n, "name", None) == "__init__"]
    return fields | {a.arg for n in made for a in n.args.args}
  return {a.arg for a in node.args.args}


def test_only_the_plug_in_imports_t5x():
  pattern = re.compile(r"^\s*(?:from|import) t5x\b", re.MULTILINE)
  importers = {
    path.relative_to(ROOT / "prompt_tuning")
    for path in (ROOT / "prompt_tuning").rglob("*.py")
    if pattern.search(path.read_text())
  }
  room = pathlib.Path("interop/t5x_engine")
  assert importers == {room / "model.py", room / "optimizer.py"}


def test_the_folder_of_gin_files_is_printed():
  assert (pathlib.Path(room.folder()) / "gin" / "t5x" / "train.gin").is_file()

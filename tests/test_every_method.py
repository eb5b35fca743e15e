"""What every method in `gin/methods/` is held to; a new file is covered at once."""

import collections
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import method_tools as tools
import numpy as np
import pytest
import quick

from prompt_tuning.core import describe
from prompt_tuning.core import trainable as branches
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.decoding import score
from prompt_tuning.engine import config, loop, optimizer, product, step
from prompt_tuning.engine.facts import product_of
from prompt_tuning.engine.recipe import drops

# Where arrays of other sizes are summed in another order. Weights that are moved by
# half a unit of their last place move logits of some generators by as much.
ROUNDING = 2e-4
# (test, places) -> the method that it ran with.
FIRST = {}
ROOT = pathlib.Path(__file__).resolve().parent.parent


class Devices:
  """Steps that a process with 8 devices takes while the other tests run.

  Workers of pytest-xdist share one: the first starts it, all read its files.
  """

  def __init__(self, folder, names):
    self.folder, self.process = folder, None
    try:
      (folder / "started").mkdir(parents=True)
    except FileExistsError:
      return
    flags = "--xla_force_host_platform_device_count=8"
    flags += f" {quick.FLAGS}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *sys.path])
    command = [sys.executable, tools.__file__, str(folder), *names]
    with open(folder / "log", "w") as log:
      self.process = subprocess.Popen(
        command, env=environment, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
      )

  def result(self, name):
    """Waits for a method's step."""
    file, last = self.folder / f"{name}.npz", time.monotonic() + 900
    while not file.exists():
      ended = self.process is not None and self.process.poll() is not None
      if ended and not file.exists() or time.monotonic() > last:
        pytest.fail((self.folder / "log").read_text()[-4000:])
      time.sleep(0.2)
    return dict(np.load(file))

  def close(self):
    if self.process is None:
      return
    try:
      # Another worker may still wait for the last methods.
      self.process.wait(timeout=120)
    except subprocess.TimeoutExpired:
      self.process.kill()
      self.process.wait()


@pytest.fixture(scope="session")
def devices(request, tmp_path_factory):
  """Starts the steps of the selected methods, in the order of the tests."""
  names = {
    item.callspec.params["case"]: None
    for item in request.session.items
    if "stepped" in getattr(item, "fixturenames", ())
  }
  shared = tmp_path_factory.getbasetemp()
  if "PYTEST_XDIST_WORKER" in os.environ:
    shared = shared.parent
  found = Devices(shared / "devices", list(names))
  yield found
  found.close()


def kinds(name, folder):
  """What the library treats in ways of their own: conditions, heads, kinds of place.

  Generators and transforms are held to their formulas in tests/words/.
  """
  method = tools.load(name, folder)
  text = json.dumps([describe.describe(one) for one in (method.prompt, method.head)])
  places = re.findall(r'"(?:encoder|decoder|cross)\.[a-z.]+"', text)
  inner = {place.rpartition(".")[2] for place in places if place.count(".") > 1}
  whole = {place for place in places if place.count(".") == 1}
  rooms = r'"prompt_tuning\.(?:conditions|heads|core)\.[^"]+"'
  return {*re.findall(rooms, text), *inner, *whole, len(method.trainable)}


def each_kind_once():
  """As few methods as hold every kind that some method has, and the plain ones."""
  with tempfile.TemporaryDirectory() as folder:
    held = {name: kinds(name, folder) for name in tools.METHODS}
  chosen = list(PLAIN)
  left = set().union(*held.values()).difference(*(held[name] for name in chosen))
  while left:
    chosen.append(max(held, key=lambda name: len(held[name] & left)))
    left -= held[chosen[-1]]
  return sorted(chosen)


PLAIN = "prompt_tuning prefix_tuning full_fine_tuning s_idpg_phm ipt_mlp_concat".split()
# Sentences of kinds that others have too are left to `.ci/run`, which sets this.
EVERY = tools.THOROUGH or bool(os.environ.get("PROMPT_TUNING_EVERY_METHOD"))
CASES = tools.METHODS if EVERY else each_kind_once()


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
  return tools.case(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module", params=tools.METHODS)
def every(request, tmp_path_factory):
  """All methods, for what costs little."""
  return tools.case(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def stepped(case, devices):
  """Loss, gradients and trained leaves of compiled steps over 8 devices."""
  return devices.result(case.method.name)


@pytest.fixture
def placed(case, request):
  """The case, where it is the first of those that stand alike; all if thorough."""
  first = FIRST.setdefault((request.function.__name__, case.stands), case.method.name)
  if first != case.method.name and not tools.THOROUGH:
    pytest.skip(f"stands where {first} does: PROMPT_TUNING_THOROUGH=1 runs it too")
  return case


def test_only_declared_leaves_move(case, stepped):
  # That no bit of the frozen branch changes is checked where the step runs.
  assert np.isfinite(stepped["loss"]) and stepped["loss"] > 0
  for path, before in branches.flatten(case.params).items():
    if not any(branches.within(path, name) for name in case.method.trainable):
      assert f"trained/{path}" not in stepped, path
      continue
    gradient, after = stepped[f"gradient/{path}"], stepped[f"trained/{path}"]
    assert np.isfinite(gradient).all() and gradient.any(), path
    own = [n for n in case.method.branch_rates if branches.within(path, n)]
    rate = case.method.branch_rates[own[0]](0) if own else case.method.rate
    tools.assert_close(after, np.asarray(before) - rate * gradient, 1e-6)
    assert (after != np.asarray(before)).any(), path


def test_packed_on_one_device_equals_compiled_over_eight(case, stepped):
  """Three equalities at once: packing, compilation and sharding change nothing.

  The left side is packed and runs primitive by primitive on one device.
  """
  assert stepped["devices"] == 8
  model, batch, _ = case.packed()
  gradients = step.gradients(model, case.method.objective, 1)
  found, (term,) = gradients(*case.split, batch, None)
  assert term.weight == stepped["weight"]
  tools.assert_close(term.total / term.weight, stepped["loss"])
  for path, gradient in branches.flatten(found).items():
    # Sums in another order, through the softmaxes of five layers each way.
    bar = 5 * ROUNDING
    tools.assert_close(gradient / term.weight, stepped[f"gradient/{path}"], bar)


@pytest.mark.parametrize("case", tools.COMPARED, indirect=True, scope="module")
def test_five_steps_over_eight_devices_equal_those_of_one(case, stepped):
  """Weights, prompts and slots divided over data and model, collected where used."""
  for path in [None, *branches.flatten(case.split[0])]:
    name = "loss" if path is None else f"trained/{path}"
    tools.assert_close(stepped[f"many/{name}"], stepped[f"one/{name}"])


def test_optimiser_has_slots_for_what_trains_alone(case):
  trainable, _ = case.split
  rates = optimizer.constant(case.method.rate), None, case.method.branch_rates
  for rule in (optimizer.Adafactor(), optimizer.AdamW()):
    slots = optimizer.Optimizer(rule, *rates).build(trainable).init(trainable)
    found = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(slots):
      keys = [str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey)]
      # The group's name stands in front, and may be that of a branch.
      named = keys[:1] and keys[0] in case.method.branch_rates
      name = "/".join(keys[1:] if named else keys)
      if np.size(leaf) > 1:
        found.add(name.lstrip("/"))
    wanted = {p for p, x in branches.flatten(trainable).items() if np.size(x) > 1}
    assert found == wanted


def test_count_equals_the_formula_of_the_file(every):
  text = (config.gin_folder() / "methods" / f"{every.method.name}.gin").read_text()
  formula = re.search(r"^# Trains: (.+)$", text, re.MULTILINE)
  if formula is None:
    pytest.fail(
      f"gin/methods/{every.method.name}.gin has no line `# Trains: <formula>`. Write "
      "its count of trained numbers in H, V, N, D, F, Le, Ld, BACKBONE and letters of "
      "a line `# Letters: P = PROMPT_LENGTH, ...`."
    )
  sizes = tools.BACKBONE.config
  letters = {"H": tools.H, "V": tools.V, "F": sizes.mlp_dim, "__builtins__": {}}
  letters |= {"N": sizes.num_heads, "D": sizes.head_dim}
  letters |= {"Le": sizes.num_encoder_layers, "Ld": sizes.num_decoder_layers}
  letters["BACKBONE"] = branches.count(tools.backbone_params())
  for letter, macro in tools.letters(every.method.name).items():
    letters[letter] = every.method.numbers[macro]
  assert branches.count(every.split[0]) == eval(formula.group(1), letters)


def test_rows_do_not_see_each_other(case):
  others = tools.examples(seed=7)
  found = case.logits(case.batch([*others[:2], *case.rows[2:4], *others[4:]]))
  tools.assert_close(found[2:4], case.plain_logits[2:4], ROUNDING)
  assert np.abs(found[4:] - case.plain_logits[4:]).max() > 0.1


def test_more_padding_and_no_company_are_invisible(case):
  alone = case.logits(case.batch(case.rows[2:3], more=3))
  tools.assert_close(alone[0], case.plain_logits[2], ROUNDING)


def test_packed_equals_unpacked(case):
  model, batch, places = case.packed()
  assert sorted(places) == list(range(tools.B))
  assert len({b for b, _ in places.values()}) < tools.B
  logits = np.asarray(model.logits(case.params, batch))
  for number, (b, s) in places.items():
    mine = np.asarray(batch["decoder_segment_ids"][b] == s)
    tools.assert_close(logits[b, mine], case.plain_logits[number, : mine.sum()])


def test_scanned_equals_unrolled(placed):
  # Without jit a scan is a loop, whose primitives all methods share.
  with jax.disable_jit():
    scanned = placed.scanned().logits()
  tools.assert_close(scanned, placed.plain_logits)


def test_cached_decoding_equals_teacher_forcing(placed):
  """Each target fed back alone, after all that came before it in the cache."""
  encoded, mask, injection = placed.encoded
  targets, weights = placed.batch()["targets"], placed.params["backbone"]
  first = placed.model.lengths.get("decoder", 0)
  steps = max(len(row["targets"]) for row in placed.rows)
  found, memory, cache = tools.BACKBONE.prefill(
    weights, (encoded, mask), steps - 1, injection
  )
  logits = [found]
  for i in range(steps - 1):
    fed = targets[:, first + i], memory, cache, jnp.int32(i)
    found, cache = tools.BACKBONE.extend(weights, *fed)
    logits.append(found)
  for b, row in enumerate(placed.rows):
    for i in range(len(row["targets"])):
      # One query at a time is summed in another order.
      tools.assert_close(logits[i][b], placed.plain_logits[b, first + i], 5e-5)


def test_choice_scores_are_those_of_each_label_alone(placed):
  """The row's own target and its neighbour's, against the logits of either."""
  width = max(len(row["targets"]) for row in placed.rows)
  pads = [(0, width - len(row["targets"])) for row in placed.rows]
  own_BU = np.stack(
    [np.pad(row["targets"], pad) for row, pad in zip(placed.rows, pads, strict=True)]
  )
  labels_KBU = np.stack([own_BU, np.roll(own_BU, 1, axis=0)])
  assert (labels_KBU[0] != labels_KBU[1]).any(axis=1).all()
  given = placed.model, placed.params, placed.batch(), labels_KBU.swapaxes(0, 1)
  with jax.disable_jit():
    found_BK = np.asarray(score.choice_scores(*given))
  swapped = placed.batch([placed.rows[-1], *placed.rows[:-1]])
  weights, first = placed.params["backbone"], placed.model.lengths.get("decoder", 0)
  other = tools.BACKBONE.decode(weights, swapped, *placed.encoded)
  for k, logits in enumerate((placed.plain_logits, np.asarray(other))):
    shares = np.asarray(jax.nn.log_softmax(logits[:, first : first + width]))
    each_BU = np.take_along_axis(shares, labels_KBU[k][..., None], -1)[..., 0]
    tools.assert_close(found_BK[:, k], np.where(labels_KBU[k] > 0, each_BU, 0).sum(1))


def equations(jaxpr, found=None):
  """Every equation of a program, those of its inner programs included."""
  found = [] if found is None else found
  for equation in jaxpr.eqns:
    found.append(equation)
    for value in jax.tree.leaves(list(equation.params.values())):
      # A jaxpr, or one closed over constants.
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        equations(inner, found)
  return found


def test_step_is_one_program_without_frozen_gradients(case):
  run, (begin, frozen, batch, key) = case.training(dropout=drops(case.model.prompt))
  program, shapes = jax.make_jaxpr(run, return_shape=True)(begin, frozen, batch, key)
  # The frozen branch is an argument, no constant; nothing calls back to the host.
  assert sum(np.size(constant) for constant in program.consts) < tools.H
  assert not program.effects
  steps = equations(program.jaxpr)
  assert not [e for e in steps if "callback" in e.primitive.name]
  after, metrics = shapes
  assert jax.tree.structure(after) == jax.tree.structure(begin)
  names = branches.flatten(after.trainable)
  assert set(names) == set(branches.flatten(case.split[0]))
  assert all(x.shape == () for x in jax.tree.leaves(metrics))
  # No gradient of a frozen kernel is computed even on the way: nothing has its shape.
  made = {getattr(v.aval, "shape", None) for e in steps for v in e.outvars}
  for path in ("decoder/logits_dense/kernel", "encoder/layers_0/mlp/wo/kernel"):
    kernel = branches.flatten(tools.backbone_params())[path]
    assert (kernel.shape in made) == (f"backbone/{path}" in names), path


def test_program_does_not_grow_with_the_batch(case):
  batch = case.batch()
  double = {name: jnp.concatenate([x, x]) for name, x in batch.items()}
  few, many = (
    equations(jax.make_jaxpr(case.model.logits)(case.params, b).jaxpr)
    for b in (batch, double)
  )
  assert count_by_name(few) == count_by_name(many)


def count_by_name(steps):
  return collections.Counter(equation.primitive.name for equation in steps)


def test_saved_and_loaded_gives_the_same_logits(case, tmp_path):
  trained, _ = case.split
  best = loop.Best(3, {"loss": 0.5})
  saved = product_of(case.model, case.params, trained, {"method": "m"}, best)
  saved.save(tmp_path / "prompt")
  loaded = product.load(tmp_path / "prompt")
  assert loaded.parameters == branches.count(trained)
  assert loaded.card["scores"] == {"loss": 0.5} and loaded.card["step"] == 3
  assert describe.describe(loaded.module) == describe.describe(case.model.prompt)
  params = loaded.params(tools.backbone_params())
  assert loaded.head == case.model.head
  model = PromptedModel(tools.BACKBONE, loaded.module, head=loaded.head)
  again = np.asarray(model.logits(params, case.batch()))
  # Another program of the same sums may round in another order.
  tools.assert_close(again, case.plain_logits)
  assert set(branches.flatten(loaded.trainable)) == set(branches.flatten(trained))
  stays = branches.flatten(loaded.frozen)
  assert not [path for path in stays if branches.within(path, "backbone")]


def test_prompt_reads_inputs_alone_and_only_if_it_says_so(case):
  if case.model.prompt is None:
    assert case.model.inject(case.params, case.batch()) is None
    return
  mine = case.handed(case.batch())
  assert mine.shape[1] >= sum(case.model.lengths.values()) * tools.H
  others = tools.examples(seed=7)
  pairs = list(zip(case.rows, others, strict=True))
  swapped = case.batch([{**row, "targets": other["targets"]} for row, other in pairs])
  assert (swapped["targets"] != case.batch()["targets"]).any()
  np.testing.assert_array_equal(case.handed(swapped), mine)
  if not case.model.prompt.reads_input:
    assert len(mine) == 1
    np.testing.assert_array_equal(case.handed(case.batch(others)), mine)
    return
  assert len(mine) == tools.B
  # Every example differs from the next one, which has another text.
  assert (mine[1:] != mine[:-1]).any(axis=1).all()


def test_first_draw_has_the_stated_shapes(every):
  if every.model.prompt is None:
    assert every.model.init_prompt(jax.random.key(0), every.params["backbone"]) == {}
    return
  drawn = every.model.init_prompt(
    jax.random.key(0), every.params["backbone"], tools.encode
  )
  wanted = branches.flatten(every.params["prompt"])
  assert set(branches.flatten(drawn)) == set(wanted)
  for path, leaf in branches.flatten(drawn).items():
    assert leaf.shape == wanted[path].shape and leaf.dtype == jnp.float32, path
    assert np.isfinite(leaf).all(), path

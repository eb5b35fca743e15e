"""Tiny runs of every method in `gin/methods/`, for tests.

As a program it takes a folder and names of methods, and writes there what compiled
steps of each give, divided over all devices and on one of them.
"""

import dataclasses
import functools
import os
import pathlib
import re
import sys
import tempfile
import zlib
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

from prompt_tuning.backbones.common import stacking
from prompt_tuning.backbones.decoder.backbone import Decoder
from prompt_tuning.backbones.decoder.config import DecoderConfig
from prompt_tuning.backbones.t5 import attention
from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.backbones.t5.config import T5Config
from prompt_tuning.core import trainable as branches
from prompt_tuning.core.injection import Injection
from prompt_tuning.core.layers import Layers
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.data.batches import stack
from prompt_tuning.data.features import Layout, pad
from prompt_tuning.data.packing import pack
from prompt_tuning.engine import config, optimizer, sharding, state, step
from prompt_tuning.engine.ready import Places
from prompt_tuning.objectives.cross_entropy import CrossEntropy

METHODS = config.methods()
# Methods that answer by a head.
HEADED = [name for name in METHODS if config.brings(name, "gin/heads/")]
V, H = 61, 16
# No two sizes alike: neither N * D and H, nor the layers of the stacks.
BACKBONE = T5(T5Config(V, H, 2, 14, 24, 2, 3))
FAMILIES = {
  "t5": BACKBONE,
  "decoder": Decoder(DecoderConfig(V, H, 4, 2, 6, 28, 3, start_id=2, end_id=1)),
}
# Every batch has 8 rows (one a device) of 40 and 20 positions, prompts and packing
# included: run primitive by primitive, all methods then share their compilations.
B, T, U, S = 8, 40, 20, 3
# Steps after which a divided run must equal one on a single device, and the methods
# that take them; the others take one, which is compared with an uncompiled one.
STEPS = 5
COMPARED = ["full_fine_tuning", "prefix_tuning", "s_idpg_phm"]
THOROUGH = bool(os.environ.get("PROMPT_TUNING_THOROUGH"))
if THOROUGH:
  COMPARED = METHODS
# No two letters of a formula share a value, so that no wrong one gives the count.
NUMBERS = {
  "PROMPT_LENGTH": 6,
  "TASK_LENGTH": 3,
  "GENERATOR_WIDTH": 20,
  "PHM_ORDER": 4,
  "LSTM_UNITS": 7,
  "CODE_WIDTH": 12,
  "RANK": 5,
  "OFFSET_LENGTH": 11,
  "BOTTLENECK": 9,
  "TASKS": 15,
  "GATE_RANK": 2,
  "GATE_WIDTH": 10,
  "BANK_SIZE": 13,
  "PROMPT_TEXT": "nine pieces",
  "SOURCES": 2,
  "FUSE_WIDTH": 8,
  "SPACES": 4,
  "SPACE_WIDTH": 13,
  # Of phases, which no test of a sentence runs.
  "TASK_SEQUENCE": None,
  "PERSONAS": [f"persona {k}" for k in range(15)],
  "CONCEPTS": [f"words {k}" for k in range(15)],
  "TRAIN_STEPS": 17,
  "LABELS": [f"label {i}" for i in range(13)],
}
# Macros that name a file of an array [V H].
FILE = re.compile(r".*_(TABLE|FILE)")

Example = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Method:
  """What a gin file says: its PROMPT, TRAINABLE, rates, and the numbers it reads.

  Attributes:
    head: its HEAD, or None. objective: its OBJECTIVE where that reads the head, or the
      cross-entropy of words.
  """

  name: str
  prompt: Any
  trainable: tuple[str, ...]
  rate: float
  branch_rates: dict[str, Any]
  numbers: dict[str, int]
  head: Any = None
  objective: Any = CrossEntropy()


def load(
  name: str,
  folder: Any = None,
  bindings: Any = (),
  spec: Any = BACKBONE.spec,
  **numbers: Any,
) -> Method:
  """Parses a method's file with tiny numbers.

  Args:
    name: of the file. folder: where an array that it asks for is written.
    bindings: more lines of gin. spec: of the backbone.
    numbers: macros in place of `NUMBERS`.
  """
  file = f"gin/methods/{name}.gin"
  config.parse([file], check=False)
  known = config.names()
  chosen: dict[str, Any] = {**NUMBERS, **numbers}
  for macro in filter(FILE.fullmatch, known - set(numbers)):
    chosen[macro] = str(pathlib.Path(folder) / f"{macro}.npy")
    # IPT's prefix mode reads a key and a value of each token.
    wide = 2 * spec.places[f"{spec.reader}.kv"].width if "prefix" in name else H
    np.save(chosen[macro], np.random.default_rng(5).normal(size=(V, wide)))
  if "SOURCE_FILES" in known:
    sources = [pathlib.Path(folder) / f"source_{i}.npy" for i in range(2)]
    for seed, source in enumerate(sources):
      table = np.random.default_rng(seed).normal(size=(chosen["PROMPT_LENGTH"], H))
      np.save(source, table)
    chosen["SOURCE_FILES"] = [str(source) for source in sources]
  lines = [f"{macro} = {chosen[macro]!r}" for macro in chosen if macro in known]
  # Names the macros that a new method leaves open: give them a value in NUMBERS.
  config.parse([file], [*lines, *bindings])
  macros = {*chosen, *letters(name).values()}
  found = {name: config.macro(name) for name in config.names() & macros}
  found |= {"LEARNING_RATE": 0.1, "BRANCH_SCHEDULES": {}, "GROUPS": {}}
  for macro in config.names() & {"LEARNING_RATE", "BRANCH_SCHEDULES", "GROUPS"}:
    found[macro] = config.macro(macro)
  # What an objective owns trains with that objective alone.
  groups = {
    name: group.schedule
    for name, group in found.pop("GROUPS").items()
    if name != "objective"
  }
  heads = {}
  if "HEAD" in config.names() and config.macro("HEAD") is not None:
    heads = {"head": config.macro("HEAD"), "objective": config.macro("OBJECTIVE")}
  found |= {name: len(x) for name, x in found.items() if isinstance(x, list)}
  return Method(
    name,
    config.macro("PROMPT"),
    tuple(config.macro("TRAINABLE")),
    found.pop("LEARNING_RATE"),
    found.pop("BRANCH_SCHEDULES") | groups,
    found,
    **heads,
  )


def letters(name: str) -> dict[str, str]:
  """Letter of a count -> its macro, as the head of a method's file states them."""
  text = (config.gin_folder() / "methods" / f"{name}.gin").read_text()
  stated = re.search(r"^# Letters: (.+)$", text, re.MULTILINE)
  pairs = stated.group(1).split(", ") if stated else []
  return dict(pair.split(" = ") for pair in pairs)


def encode(text: str) -> list[int]:
  """Piece ids of a text, one a character."""
  return [3 + ord(letter) % (V - 3) for letter in text]


def examples(seed: int = 0, count: int = B) -> list[Example]:
  """Task features of several lengths; some are shorter than the prompts."""
  rng = np.random.default_rng(seed)

  def ids(length: int) -> np.ndarray:
    return np.append(rng.integers(3, V, length - 1), 1).astype(np.int32)

  return [
    {
      "inputs": ids((9, 2, 5, 8)[i % 4]),
      "targets": ids(2 + i % 3),
      "external": rng.normal(size=NUMBERS["CODE_WIDTH"]).astype(np.float32),
      "labels": (np.arange(i, i + 13) % 13 % (i + 2) == 0).astype(np.float32),
      "task": np.int32(i % 5),
    }
    for i in range(count)
  ]


def random_params(shapes: Any, scale: float = 0.3, salt: str = "") -> Any:
  """Numbers for a tree of shapes, the same in every process; norms stay near 1."""

  def draw(path: str, leaf: Any) -> jax.Array:
    rng = np.random.default_rng(zlib.crc32((salt + path).encode()))
    values = scale * rng.normal(size=leaf.shape)
    return jnp.asarray(values + path.endswith("/scale"), jnp.float32)

  flat = {path: draw(path, leaf) for path, leaf in branches.flatten(shapes).items()}
  return branches.unflatten(flat)


@functools.cache
def backbone_params(family: str = "t5") -> Any:
  """Weights of a tiny backbone."""
  return random_params(FAMILIES[family].shapes())


@dataclasses.dataclass
class Case:
  """One method on a tiny backbone, with parameters drawn at random."""

  method: Method
  model: PromptedModel
  params: dict[str, Any]
  rows: list[Example]

  @property
  def split(self) -> tuple[Any, Any]:
    """(trainable, frozen) parameters."""
    return branches.split(self.params, self.method.trainable)

  @property
  def layout(self) -> Layout:
    """Positions on both sides, the reserved ones included, are T and U."""
    taken = self.model.backbone.format.reserved(self.model.lengths)
    return Layout.of(self.model, T - taken["inputs"], U - taken["targets"])

  def batch(self, rows: list[Example] | None = None, more: int = 0) -> dict[str, Any]:
    """A padded batch of examples, with `more` pads behind each input."""
    layout = dataclasses.replace(self.layout, inputs=self.layout.inputs + more)
    rows = self.rows if rows is None else rows
    converted = map(layout.convert, rows)
    return self._arrays([pad(row, layout.lengths, layout.form) for row in converted])

  def _arrays(self, rows: list[Example]) -> dict[str, Any]:
    batch = stack(rows)
    prompt = self.model.prompt
    if prompt is None or not prompt.external_width:
      batch.pop("external", None)
    if prompt is None or not prompt.tasks:
      batch.pop("task", None)
    if self.model.head is None:
      batch.pop("labels", None)
    elif self.method.objective.target == "label":
      batch["labels"] = batch["labels"].argmax(-1)
    return {name: jnp.asarray(value) for name, value in batch.items()}

  def packed(self) -> tuple[PromptedModel, dict[str, Any], dict[int, tuple[int, int]]]:
    """Model and batch of the same examples in packed rows, B rows in all.

    Also says where each example went: number -> (row, segment from 1).
    """
    converted = [self.layout.convert(row) for row in self.rows]
    form = self.layout.form
    rows = list(pack(converted, T, U, S, form=form))
    pads = {name: feature.pad for name, feature in form.features.items()}
    blank = {name: np.full_like(x, pads.get(name, 0)) for name, x in rows[0].items()}
    batch = self._arrays(rows + [blank] * (B - len(rows)))
    places = {}
    for number, row in enumerate(self.rows):
      for b, s in np.ndindex(len(rows), S):
        mine = (rows[b]["segment_ids"] == s + 1) & (rows[b]["prompt_index"] < 0)
        if np.array_equal(rows[b]["inputs"][mine], form.read_ids(row["inputs"])):
          places[number] = (b, s + 1)
    return dataclasses.replace(self.model, segments=S), batch, places

  def logits(self, batch: Any = None, params: Any = None) -> np.ndarray:
    """Logits without dropout, one primitive at a time."""
    batch = self.batch() if batch is None else batch
    return np.asarray(self.model.logits(params or self.params, batch))

  @functools.cached_property
  def encoded(self) -> tuple[Any, Any, Any]:
    """Encodings of the case's own batch, their mask, and what the prompt hands back."""
    injection = self.model.inject(self.params, self.batch())
    weights = self.params["backbone"]
    return *BACKBONE.encode(weights, self.batch(), injection), injection

  @functools.cached_property
  def plain_logits(self) -> np.ndarray:
    """Logits of the case's own batch."""
    weights = self.params["backbone"]
    return np.asarray(BACKBONE.decode(weights, self.batch(), *self.encoded))

  @property
  def stands(self) -> tuple[Any, ...]:
    """What the backbone sees of a method: places, whether masked, whether one for all.

    Past the prompt, methods that stand alike run the same code.
    """
    injection = self.encoded[2] or Injection()
    held = {name: injection.get(name) for name in sorted(injection.places)}
    return tuple(
      (name, getattr(place, "mask", None) is None, len(jax.tree.leaves(place)[0]) == 1)
      for name, place in held.items()
    )

  def scanned(self) -> "Case":
    """The same with one stacked branch of layers a stack."""
    backbone, weights = self.model.backbone, self.params["backbone"]
    config = backbone.config
    depths = {
      stack: getattr(config, f"num_{stack}_layers")
      for stack in stacking.STACKS
      if stack in weights
    }
    stacked = stacking.stack_layers(weights, depths, "num_{}_layers")
    backbone = backbone.recast(scan_layers=True)
    params = {**self.params, "backbone": stacked}
    model = dataclasses.replace(self.model, backbone=backbone)
    return dataclasses.replace(self, model=model, params=params)

  def handed(self, batch: dict[str, Any]) -> np.ndarray:
    """What the prompt hands back [R X], all places one behind the other."""
    found = self.model.inject(self.params, batch)
    context = self.model.context(self.params["backbone"], batch)
    found = [as_read(record, context) for record in found.held.values()]
    tables = [x for x in jax.tree.leaves(found) if x.dtype != bool]
    R = max(map(len, tables))
    # A static part stands in every example.
    wide = [np.broadcast_to(x, (R, *x.shape[1:])) for x in tables]
    return np.concatenate([x.reshape(R, -1) for x in wide], axis=1)

  def vectors(self, batch: dict[str, Any]) -> np.ndarray:
    """The same as vectors [R P H], for places of that width."""
    found = self.handed(batch)
    return found.reshape(len(found), -1, H)

  def training(
    self, rule: Any = optax.sgd, dropout: bool = False, microbatches: int = 1
  ) -> tuple[Any, Any]:
    """The engine's step with the file's rates, and its arguments.

    A recorder of the gradient stands in front of the rule, which is linear so that
    rounding stays small.
    """
    trainable, frozen = self.split
    own = {name: slowed(rate) for name, rate in self.method.branch_rates.items()}
    rates = slowed(optimizer.constant(self.method.rate)), None, own
    transform = optax.chain(
      recorder(), optimizer.Optimizer(rule, *rates).build(trainable)
    )
    run = step.train_step(
      self.model, self.method.objective, transform, microbatches, dropout=dropout
    )
    begin = state.create(trainable, transform)
    return run, (begin, frozen, self.batch(), jax.random.key(2))


def as_read(record: Any, context: Any) -> Any:
  """A record, with what its readers would make of the embeddings of the text."""
  if not isinstance(record, Layers):
    return record
  states = context.embeddings, context.mask[:, None]

  def read(part: Any) -> jax.Array:
    if part.reader is None:
      return part.tables
    first = jax.tree.map(lambda x: x[0], part.reader.own)
    return part.reader.make(part.reader.shared, first, *states)[:, 0]

  return [read(part) for part in record.parts]


def slowed(rate: Any) -> Any:
  """A rate for the first step, and a hundredth of it for those behind.

  Random weights make attention so sharp that large steps multiply each rounding.
  """
  return lambda step: rate(step) * jnp.where(step == 0, 1.0, 0.01)


def recorder() -> optax.GradientTransformation:
  """Keeps the gradient that reaches the optimiser as its state."""
  return optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda gradient, _, params=None: (gradient, gradient),
  )


def outcome(result: Any) -> dict[str, np.ndarray]:
  """A step's result by name: loss, weight, gradients, trained leaves."""
  after, metrics = result
  loss = metrics["loss"]
  found = {"loss": np.asarray(loss.compute()), "weight": np.asarray(loss.count)}
  for kind, tree in (("gradient", after.optimizer[0]), ("trained", after.trainable)):
    for path, leaf in branches.flatten(tree).items():
      found[f"{kind}/{path}"] = np.asarray(leaf)
  return found


def case(
  name: str,
  folder: Any = None,
  bindings: Any = (),
  family: str = "t5",
  **numbers: Any,
) -> Case:
  """A method, see `load`, with its model and examples."""
  backbone = FAMILIES[family]
  method = load(name, folder, bindings, backbone.spec, **numbers)
  model = PromptedModel(backbone, method.prompt, head=method.head)
  params = {"backbone": backbone_params(family)}
  if method.head is not None:
    params["head"] = random_params(model.head_shapes(), salt="head")
  if method.prompt is not None:
    shapes = model.prompt_shapes(params["backbone"])
    params["prompt"] = random_params(shapes, salt="prompt")
  return Case(method, model, params, examples())


def changed(case: Case, **leaves: Any) -> Case:
  """The case with some parameters of its prompt replaced: path, "__" for "/"."""
  flat = branches.flatten(case.params)
  for name, value in leaves.items():
    path = "prompt/" + name.replace("__", "/")
    assert path in flat, path
    flat[path] = jnp.broadcast_to(jnp.asarray(value, jnp.float32), flat[path].shape)
  return dataclasses.replace(case, params=branches.unflatten(flat))


def leaf(case: Case, path: str) -> np.ndarray:
  """A parameter of the prompt by its path."""
  return np.asarray(branches.flatten(case.params)["prompt/" + path])


def folding(always: bool) -> Any:
  """Targets read the encoder by `attend_folded` always, or never."""
  return mock.patch.object(attention.Attention, "folds", lambda *sizes: always)


def assert_close(left: Any, right: Any, tolerance: float = 1e-5) -> None:
  """Equal but for rounding, measured against the largest number."""
  left, right = np.asarray(left), np.asarray(right)
  scale = max(1.0, float(np.abs(right).max())) if right.size else 1.0
  np.testing.assert_allclose(left, right, rtol=0, atol=tolerance * scale)


@dataclasses.dataclass
class Taken:
  """Attributes:
  first, last: outcomes of the first step and of the last one.
  program: the compiled step. places: where its parameters live.
  """

  first: dict[str, np.ndarray]
  last: dict[str, np.ndarray]
  program: Any
  places: Places


def take_steps(
  one: Case, place: sharding.Placement, count: int = STEPS, microbatches: int = 1
) -> Taken:
  """Compiled steps of a method as the engine places them, the state donated."""
  sharding.check_batch(len(one.rows), microbatches, place)
  run, (begin, frozen, batch, key) = one.training(microbatches=microbatches)
  trainable, _ = one.split
  axes = one.model.logical_axes(one.params)
  places = Places(place.tree(frozen, axes), place.tree(trainable, axes, trains=True))
  held = place.beside(begin, trainable, places.trainable)
  places = dataclasses.replace(places, state=held)
  before = jax.tree.map(np.array, frozen)
  frozen = sharding.put(frozen, places.frozen)
  # A copy: what is donated must not be the case's own arrays.
  now = sharding.put(jax.tree.map(jnp.array, begin), held)
  batch = place.put(batch)
  outputs = held, place.replicated
  step_fn = jax.jit(place.traced(run), donate_argnums=0, out_shardings=outputs)
  program = step_fn.lower(now, frozen, batch, key).compile()
  found = []
  for _ in range(count):
    now, metrics = program(now, frozen, batch, key)
    found.append(outcome((now, metrics)))
  jax.tree.map(np.testing.assert_array_equal, before, frozen)
  return Taken(found[0], found[-1], program, places)


def sharded_steps(one: Case, compared: bool) -> dict[str, np.ndarray]:
  """Steps on 4 x 2 devices with everything divided, and on one device if compared."""
  rules = axis_rules("fully_sharded")
  config = sharding.Sharding(2, rules=rules, trainable_rules=rules)
  many = take_steps(one, config.over(), STEPS if compared else 1)
  found = {**many.first, "devices": np.asarray(len(jax.devices()))}
  if compared:
    single = take_steps(one, sharding.DEFAULT.over(jax.devices()[:1]))
    for name, taken in (("many", many), ("one", single)):
      found |= {f"{name}/{key}": value for key, value in taken.last.items()}
  return found


@functools.cache
def axis_rules(name: str) -> Any:
  """AXIS_RULES of a file of gin/sharding/."""
  file = f"gin/sharding/{name}.gin"
  config.parse([file], ["NUM_PARTITIONS = 1"])
  return config.macro("AXIS_RULES")


def main(folder: str, *names: str) -> None:
  """Writes FOLDER/NAME.npz for each method, each file whole or not at all."""
  for name in names:
    with tempfile.TemporaryDirectory() as scratch:
      found = sharded_steps(case(name, scratch), name in COMPARED)
    aside = pathlib.Path(folder, f"{name}.part.npz")
    np.savez(aside, **found)
    aside.replace(pathlib.Path(folder, f"{name}.npz"))


if __name__ == "__main__":
  main(*sys.argv[1:])

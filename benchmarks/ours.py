"""Our side of the benchmarks: a backbone with random weights, its compiled step.

The step is the one that `engine.fit` compiles: the same function, the same donation.
"""

import argparse
import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.backbones.t5.config import T5Config
from prompt_tuning.core import model as core_model
from prompt_tuning.core import trainable as branches
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.engine import config, optimizer, state, step
from prompt_tuning.objectives.cross_entropy import CrossEntropy

FULL = "full_fine_tuning"
RULES = {
  # The forms that `torch.optim` has too, so that both sides do the same work.
  "adamw": optimizer.AdamW(),
  "adafactor": optimizer.Adafactor(parameter_scale=True, factored=True),
}


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Shape of a backbone and of its batch; each field is a flag.

  Attributes:
    width: H. heads: N. head_width: D. ff: F. vocabulary: V.
    encoder_layers, decoder_layers: L.
    batch: B. inputs: T, tokens a row, the prompt not counted. targets: U.
    prompt: P. dropout: of the backbone's layers.
    dtype: of activations. weights: dtype of the frozen weights; "" for `dtype`.
    scan: scanned layers. remat: see `T5Config.remat_policy`.
    generator: width of the bottleneck of IDPG's generators.
    optimizer: one of `RULES`.
  """

  width: int = 512
  heads: int = 6
  head_width: int = 64
  ff: int = 1024
  vocabulary: int = 32128
  encoder_layers: int = 8
  decoder_layers: int = 8
  batch: int = 16
  inputs: int = 128
  targets: int = 8
  prompt: int = 20
  dropout: float = 0.1
  dtype: str = "float32"
  weights: str = ""
  scan: bool = False
  remat: str = "none"
  generator: int = 64
  optimizer: str = "adamw"

  def backbone(self) -> T5:
    return T5(
      T5Config(
        self.vocabulary,
        self.width,
        self.heads,
        self.head_width,
        self.ff,
        self.encoder_layers,
        self.decoder_layers,
        dropout_rate=self.dropout,
        dtype=self.dtype,
        scan_layers=self.scan,
        remat_policy=self.remat,
      )
    )

  def params(self) -> Any:
    """Random weights; drawn in their own dtype, so that nothing wider is held."""
    dtype = jnp.dtype(self.weights or self.dtype)

    def draw(key):
      return jax.tree.map(lambda x: x.astype(dtype), self.backbone().init(key))

    return jax.jit(draw)(jax.random.key(0))

  def ids(self, seed: int = 0) -> dict[str, np.ndarray]:
    """Token ids without padding: inputs [B T], targets [B U]."""
    rng = np.random.default_rng(seed)

    def draw(length: int) -> np.ndarray:
      return rng.integers(3, self.vocabulary, (self.batch, length), np.int32)

    return {"inputs": draw(self.inputs), "targets": draw(self.targets)}


def add_flags(parser: argparse.ArgumentParser, **defaults: Any) -> None:
  """A flag for each field of `Sizes`, with other defaults where given."""
  for field in dataclasses.fields(Sizes):
    value = defaults.get(field.name, field.default)
    kind: dict[str, Any] = {"type": type(field.default), "default": value}
    if isinstance(value, bool):
      kind = {"action": argparse.BooleanOptionalAction, "default": value}
    if field.name == "optimizer":
      kind["choices"] = sorted(RULES)
    parser.add_argument(f"--{field.name}", **kind)


def sizes(args: argparse.Namespace) -> Sizes:
  return Sizes(**{f.name: getattr(args, f.name) for f in dataclasses.fields(Sizes)})


def method(name: str, shape: Sizes) -> tuple[Any, tuple[str, ...]]:
  """(prompt, trainable branches) of a file of `gin/methods/`."""
  file = f"gin/methods/{name}.gin"
  config.parse([file], check=False)
  wanted = {"PROMPT_LENGTH": shape.prompt, "GENERATOR_WIDTH": shape.generator}
  known = config.names()
  lines = [f"{macro} = {value}" for macro, value in wanted.items() if macro in known]
  config.parse([file], lines)
  return config.macro("PROMPT"), tuple(config.macro("TRAINABLE"))


@dataclasses.dataclass
class Training:
  """One compiled step and what it moves; calling it takes a step and waits for it.

  Attributes:
    compiled: the step. state: what trains. frozen: the rest. key: of the dropout.
    batches: taken in turn. seconds: (tracing, compiling).
  """

  compiled: Any
  state: Any
  frozen: Any
  batches: Sequence[Any]
  seconds: tuple[float, float]
  key: Any
  taken: int = 0

  def __call__(self) -> None:
    batch = self.batches[self.taken % len(self.batches)]
    self.taken += 1
    self.state, metrics = self.compiled(self.state, self.frozen, batch, self.key)
    jax.block_until_ready((self.state, metrics))

  @property
  def flops(self) -> float:
    """Operations of the compiled step as XLA counts them (a scanned body once)."""
    return float(self.compiled.cost_analysis()["flops"])

  @property
  def temporaries(self) -> int:
    """Bytes of the compiled step's own arrays."""
    return self.compiled.memory_analysis().temp_size_in_bytes

  @property
  def trained(self) -> int:
    return branches.count(self.state.trainable)


def prompted(
  name: str, shape: Sizes, backbone_params: Any, segments: int = 1
) -> tuple[PromptedModel, dict[str, Any], tuple[str, ...]]:
  """(model, all parameters, branches that train) of a method."""
  prompt, trainable = method(name, shape)
  model = PromptedModel(shape.backbone(), prompt, segments)
  # Labels and texts do not matter for speed: any piece will do.
  drawn = model.init_prompt(jax.random.key(1), backbone_params, lambda text: [3])
  params = {"backbone": backbone_params}
  return model, {**params, "prompt": drawn} if drawn else params, trainable


def lower(
  name: str, shape: Sizes, params: Any, batches: Sequence[Any] | None = None, **changes: Any
) -> tuple[Any, tuple[Any, Any, Sequence[Any], Any]]:
  """The step of a method, traced, and (state, frozen, batches, key).

  Args:
    name: of the method. shape: see `Sizes`. params: of the backbone.
    batches: model features; None for one batch of random ids without padding.
    **changes: `segments`, or `features`: more arrays for the random batch.
  """
  model, whole, trainable = prompted(
    name, shape, params, changes.get("segments", 1)
  )
  if batches is None:
    batch = core_model.features(**shape.ids(), lengths=model.lengths)
    batches = [{**batch, **changes.get("features", {})}]
  trained, frozen = branches.split(whole, trainable)
  # A copy: the state is donated, and the weights may serve other sides.
  trained = jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), trained)
  rule = optimizer.Optimizer(RULES[shape.optimizer], optimizer.constant(1e-3))
  transform = rule.build(trained)
  run = step.train_step(model, CrossEntropy(), transform, dropout=shape.dropout > 0)
  begin, key = state.create(trained, transform), jax.random.key(2)
  traced = jax.jit(run, donate_argnums=0).trace(begin, frozen, batches[0], key)
  return traced, (begin, frozen, batches, key)


def build(name: str, shape: Sizes, params: Any, *args: Any, **changes: Any) -> Training:
  """`lower`, compiled."""
  start = time.perf_counter()
  traced, (begin, frozen, batches, key) = lower(name, shape, params, *args, **changes)
  lowered = traced.lower()
  middle = time.perf_counter()
  compiled = lowered.compile()
  seconds = (middle - start, time.perf_counter() - middle)
  return Training(compiled, begin, frozen, batches, seconds, key)

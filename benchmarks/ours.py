"""Our side of the benchmarks: a backbone with random weights, its compiled step.

The step is the one that `engine.fit` compiles: the same function, donation and options.
"""

import argparse
import dataclasses
import functools
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
from prompt_tuning.engine import compilation, config, optimizer, state, step
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
    scan: scanned layers. remat: see `T5Config.remat_policy`. attention: see there.
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
  attention: str = "xla"
  generator: int = 64
  optimizer: str = "adamw"

  @property
  def options(self) -> dict[str, str]:
    """What a step of these sizes asks of XLA."""
    positions = self.batch * (self.prompt + self.inputs)
    return compilation.options(jax.default_backend(), positions)

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
        attention=self.attention,
      )
    )

  def shapes(self) -> Any:
    """Shapes and dtypes of the weights."""
    dtype = jnp.dtype(self.weights or self.dtype)
    shapes = self.backbone().shapes()
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), shapes)

  def params(self) -> Any:
    """Random weights, leaf by leaf and in their own dtype: nothing wider is held."""
    dtype = jnp.dtype(self.weights or self.dtype)
    flat = branches.flatten(self.shapes())
    keys = jax.random.split(jax.random.key(0), len(flat))

    def leaf(key: Any, path: str, shape: tuple[int, ...]) -> jax.Array:
      if path.endswith("scale"):
        return jnp.ones(shape, dtype)
      # As T5 draws them: attention has no scale, its queries' kernel has.
      fan = 1 if "embed" in path.split("/")[-1] else shape[-2]
      fan *= self.head_width if "/query/" in path else 1
      return _normal(key, fan**-0.5, shape, dtype)

    drawn = {
      p: leaf(k, p, x.shape) for k, (p, x) in zip(keys, flat.items(), strict=True)
    }
    return branches.unflatten(drawn)

  def ids(self, seed: int = 0) -> dict[str, np.ndarray]:
    """Token ids without padding: inputs [B T], targets [B U]."""
    rng = np.random.default_rng(seed)

    def draw(length: int) -> np.ndarray:
      return rng.integers(3, self.vocabulary, (self.batch, length), np.int32)

    return {"inputs": draw(self.inputs), "targets": draw(self.targets)}


@functools.partial(jax.jit, static_argnums=(2, 3))
def _normal(key: Any, scale: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
  return (scale * jax.random.normal(key, shape, dtype)).astype(dtype)


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
  if not shape.dropout:
    wanted["GENERATOR_DROPOUT"] = 0.0
  known = config.names()
  lines = [f"{macro} = {value}" for macro, value in wanted.items() if macro in known]
  config.parse([file], lines)
  return config.macro("PROMPT"), tuple(config.macro("TRAINABLE"))


@dataclasses.dataclass
class Training:
  """A compiled step and what it moves; calling it takes a step and waits for it.

  Attributes:
    model: backbone and prompt. programs: the step, compiled for each shape of a batch.
    state: what trains. frozen: the rest. key: of the dropout.
    batches: taken in turn. seconds: that compiling took.
  """

  model: PromptedModel
  programs: dict[Any, Any]
  state: Any
  frozen: Any
  batches: Sequence[Any]
  seconds: float
  key: Any
  taken: int = 0

  def __call__(self) -> None:
    batch = self.batches[self.taken % len(self.batches)]
    self.taken += 1
    run = self.programs[_shapes(batch)]
    self.state, metrics = run(self.state, self.frozen, batch, self.key)
    jax.block_until_ready((self.state, metrics))

  @property
  def compiled(self) -> Any:
    """The step for the first batch."""
    return self.programs[_shapes(self.batches[0])]

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


def _shapes(batch: Any) -> Any:
  return tuple(sorted((name, value.shape) for name, value in batch.items()))


def prompted(
  name: str, shape: Sizes, backbone_params: Any, segments: int = 1
) -> tuple[PromptedModel, dict[str, Any], tuple[str, ...]]:
  """(model, all parameters, branches that train) of a method.

  Weights may be given as shapes; the prompt's are shapes then, too.
  """
  prompt, trainable = method(name, shape)
  model = PromptedModel(shape.backbone(), prompt, segments)

  def draw(params):
    # Labels and texts do not matter for speed: any piece will do.
    return model.init_prompt(jax.random.key(1), params, lambda text: [3])

  shapes = isinstance(jax.tree.leaves(backbone_params)[0], jax.ShapeDtypeStruct)
  drawn = (jax.eval_shape if shapes else _call_jitted)(draw, backbone_params)
  params = {"backbone": backbone_params}
  return model, {**params, "prompt": drawn} if drawn else params, trainable


def _call_jitted(function: Any, *args: Any) -> Any:
  return jax.jit(function)(*args)


def stepper(model: PromptedModel, trained: Any, shape: Sizes) -> tuple[Any, Any]:
  """(the step, compiled when called; what makes its first state)."""
  rule = optimizer.Optimizer(RULES[shape.optimizer], optimizer.constant(1e-3))
  transform = rule.build(trained)
  run = step.train_step(model, CrossEntropy(), transform, dropout=shape.dropout > 0)

  def begin(trained: Any) -> state.TrainState:
    # A copy: the state is donated, and the weights may serve other sides.
    wide = jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), trained)
    return state.create(wide, transform)

  return jax.jit(run, donate_argnums=0, compiler_options=shape.options), begin


def trace(name: str, shape: Sizes) -> tuple[Any, Any]:
  """(the traced step of a method, shapes of what is frozen); no weight is drawn."""
  model, whole, trainable = prompted(name, shape, shape.shapes())
  trained, frozen = branches.split(whole, trainable)
  run, begin = stepper(model, trained, shape)
  batch = core_model.features(**shape.ids(), lengths=model.lengths)
  arguments = jax.eval_shape(begin, trained), frozen, batch, jax.random.key(2)
  return run.trace(*arguments), frozen


def build(
  name: str,
  shape: Sizes,
  params: Any,
  batches: Sequence[Any] | None = None,
  segments: int = 1,
  features: dict[str, Any] | None = None,
) -> Training:
  """The compiled step of a method with its first state.

  Args:
    name: of the method. shape: see `Sizes`. params: of the backbone.
    batches: model features; None for one batch of random ids without padding, to
      which `features` adds arrays.
    segments: examples a packed row may hold.
  """
  model, whole, trainable = prompted(name, shape, params, segments)
  if batches is None:
    ids = core_model.features(**shape.ids(), lengths=model.lengths)
    batches = [{**ids, **(features or {})}]
  trained, frozen = branches.split(whole, trainable)
  run, begin = stepper(model, trained, shape)
  first, key = begin(trained), jax.random.key(2)
  programs, seconds = {}, 0.0
  for shapes, batch in {_shapes(batch): batch for batch in batches}.items():
    lowered = run.lower(first, frozen, batch, key)
    start = time.perf_counter()
    programs[shapes] = lowered.compile()
    seconds += time.perf_counter() - start
  return Training(model, programs, first, frozen, batches, seconds, key)

"""Tiny runs of every method in `gin/methods/`, for tests."""

import dataclasses
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.backbones.t5.config import T5Config
from prompt_tuning.core import trainable as branches
from prompt_tuning.core.model import PromptedModel, features
from prompt_tuning.engine import config, fit, optimizer, state, step
from prompt_tuning.objectives.cross_entropy import CrossEntropy

METHODS = config.methods()
# Rows, input tokens, target tokens; 8 rows so that 8 devices get one each.
B, T, U = 8, 9, 4
V, H = 64, 16
BACKBONE = T5(T5Config(V, H, 2, 8, 24, 1, 1))
# What methods leave open, or would make too large; no two letters of a formula share a
# value, so that no wrong formula gives the right count.
NUMBERS = {
  "PROMPT_LENGTH": 4,
  "TASK_LENGTH": 3,
  "GENERATOR_WIDTH": 20,
  "PHM_ORDER": 2,
  "LSTM_UNITS": 5,
  "CODE_WIDTH": 8,
}
LETTERS = {
  "P": "PROMPT_LENGTH",
  "Pt": "TASK_LENGTH",
  "r": "GENERATOR_WIDTH",
  "n": "PHM_ORDER",
  "u": "LSTM_UNITS",
  "C": "CODE_WIDTH",
}
# Macros that name a file of an array.
FILE = re.compile(r".*_(TABLE|FILE)")


@dataclasses.dataclass(frozen=True)
class Method:
  """What a gin file says.

  Attributes:
    name: of the file. prompt: its PROMPT. trainable: its TRAINABLE.
    rate, branch_rates: LEARNING_RATE and BRANCH_SCHEDULES, as the engine reads them.
    macros: numbers that it reads.
  """

  name: str
  prompt: Any
  trainable: tuple[str, ...]
  rate: float
  branch_rates: dict[str, Any]
  macros: dict[str, Any]

  @property
  def external(self) -> int:
    """Width of the vectors that its data must bring; 0 for none."""
    return 0 if self.prompt is None else self.prompt.external_width

  @property
  def reads_input(self) -> bool:
    return self.prompt is not None and self.prompt.reads_input

  def optimizer(self) -> optimizer.Optimizer:
    """The engine's optimiser with the file's rates."""
    return optimizer.Optimizer(
      optimizer.Adafactor(),
      optimizer.constant(self.rate),
      branch_schedules=self.branch_rates,
    )


def load(name: str, folder: pathlib.Path, *bindings: str, **numbers: Any) -> Method:
  """Parses a method's file with tiny numbers.

  Args:
    name: of the file. folder: where an array that it reads may be written.
    bindings: more lines of gin. numbers: macros that override `NUMBERS`.
  """
  file = f"gin/methods/{name}.gin"
  config.parse([file], check=False)
  known = config.names()
  table = folder / f"{name}.npy"
  np.save(table, np.random.default_rng(5).normal(size=(V, H)).astype(np.float32))
  lines = [f"{m} = {str(table)!r}" for m in known if FILE.fullmatch(m)]
  chosen = {**NUMBERS, **numbers}
  lines += [f"{m} = {value!r}" for m, value in chosen.items() if m in known]
  # Raises, and names them, where a macro of a new method is still unset.
  config.parse([file], [*lines, *bindings])
  known = config.names()
  given = {m: config.macro(m) for m in LETTERS.values() if m in known}
  rates = config.macro("BRANCH_SCHEDULES") if "BRANCH_SCHEDULES" in known else {}
  return Method(
    name=name,
    prompt=config.macro("PROMPT"),
    trainable=tuple(config.macro("TRAINABLE")),
    rate=config.macro("LEARNING_RATE") if "LEARNING_RATE" in known else 0.1,
    branch_rates=rates,
    macros=given,
  )


def encode(text: str) -> list[int]:
  """Piece ids of a text, one a character."""
  return [3 + ord(letter) % (V - 3) for letter in text]


def examples(count: int = B, seed: int = 0) -> list[dict[str, np.ndarray]]:
  """Unpadded task features of many lengths; some are shorter than a prompt."""
  rng = np.random.default_rng(seed)
  found = []
  for i in range(count):
    length = (T, 2, 5, T - 1)[i % 4]
    target = 2 + i % (U - 1)
    found.append(
      {
        "inputs": np.append(rng.integers(3, V, length - 1), 1).astype(np.int32),
        "targets": np.append(rng.integers(3, V, target - 1), 1).astype(np.int32),
        "external": rng.normal(size=NUMBERS["CODE_WIDTH"]).astype(np.float32),
      }
    )
  return found


def stack(rows: list[np.ndarray], length: int) -> np.ndarray:
  """Rows filled up with pads."""
  return np.stack([np.pad(row, (0, length - len(row))) for row in rows])


def batch_of(
  model: PromptedModel, rows: list[dict[str, np.ndarray]], length: int = T
) -> dict[str, jax.Array]:
  """A padded batch with the model's positions in front."""
  batch = features(
    stack([row["inputs"] for row in rows], length),
    stack([row["targets"] for row in rows], U),
    model.lengths,
  )
  if model.prompt is not None and model.prompt.external_width:
    batch["external"] = jnp.asarray(np.stack([row["external"] for row in rows]))
  return batch


@dataclasses.dataclass
class Case:
  """One method on the tiny backbone.

  Attributes:
    method: its sentence. model: the model. params: random parameters.
    rows: its examples. batch: the same as a batch.
  """

  method: Method
  model: PromptedModel
  params: dict[str, Any]
  rows: list[dict[str, np.ndarray]]
  batch: dict[str, jax.Array]

  @property
  def split(self) -> tuple[Any, Any]:
    return branches.split(self.params, self.method.trainable)

  def logits(self, batch: Any = None, params: Any = None) -> np.ndarray:
    """Logits without dropout, one primitive at a time."""
    batch = self.batch if batch is None else batch
    return np.asarray(self.model.logits(params or self.params, batch))


def case(name: str, folder: pathlib.Path, backbone_params: Any) -> Case:
  method = load(name, folder)
  model = PromptedModel(BACKBONE, method.prompt)
  params = {"backbone": backbone_params}
  if method.prompt is not None:
    params["prompt"] = model.init_prompt(jax.random.key(1), backbone_params, encode)
  rows = examples()
  return Case(method, model, params, rows, batch_of(model, rows))


def backbone_params() -> Any:
  """Random weights whose logits have a spread of about 1."""
  return jax.jit(BACKBONE.init)(jax.random.key(0))


def recorder() -> optax.GradientTransformation:
  """Keeps the gradient that reaches the optimiser as its state."""
  return optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda gradient, _, params=None: (gradient, gradient),
  )


def training(case: Case) -> tuple[Any, tuple[Any, Any, Any, Any]]:
  """The engine's step for a method, and its arguments before the first one.

  The optimiser is the method's own, with a recorder in front.
  """
  trainable, frozen = case.split
  transform = optax.chain(recorder(), case.method.optimizer().build(trainable))
  dropout = fit.drops(case.method.prompt)
  run = step.train_step(case.model, CrossEntropy(), transform, dropout=dropout)
  begin = state.create(trainable, transform)
  return run, (begin, frozen, case.batch, jax.random.key(2))


def outcome(result: Any) -> dict[str, np.ndarray]:
  """A step's result as flat arrays: loss, gradients, trained leaves."""
  after, metrics = result
  found = {"loss": np.asarray(metrics["loss"].compute())}
  for kind, tree in (("gradient", after.optimizer[0]), ("trained", after.trainable)):
    for path, leaf in branches.flatten(tree).items():
      found[f"{kind}/{path}"] = np.asarray(leaf)
  return found


def assert_close(left: Any, right: Any, tolerance: float = 1e-5) -> None:
  """Equal but for rounding, measured against the largest number."""
  left, right = np.asarray(left), np.asarray(right)
  scale = max(1.0, float(np.abs(right).max())) if right.size else 1.0
  np.testing.assert_allclose(left, right, rtol=0, atol=tolerance * scale)

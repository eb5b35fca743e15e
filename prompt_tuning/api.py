"""The names a notebook needs.

import prompt_tuning as pt

model = pt.load_model("mini")
prompt = pt.tune(model, train, method="ipt_mlp", validation=validation, steps=300)
pt.classify(model, prompt, ["what a film"], ["negative", "positive"])
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from prompt_tuning import answer
from prompt_tuning.core import model as core_model
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.data import vocabularies
from prompt_tuning.data.features import ROUND, Layout
from prompt_tuning.data.lists import Lists
from prompt_tuning.engine import compilation, config, evaluate, fit, loop
from prompt_tuning.engine import score as scoring
from prompt_tuning.engine.product import Product
from prompt_tuning.interop import prompts
from prompt_tuning.interop.load import Loaded, load
from prompt_tuning.interop.vocabulary import located
from prompt_tuning.outputs.choice import Choice

# At most so many different targets make a list of labels.
MOST_LABELS = 64


class Quiet:
  """A recorder that only remembers."""

  def __init__(self) -> None:
    self.lines: list[dict[str, Any]] = []

  def write(self, step: int, split: str, values: loop.Scores) -> None:
    self.lines.append({"step": step, "split": split, **values})

  def step(self, step: int) -> None:
    """Nothing moves."""

  def say(self, text: str) -> None:
    """Nobody listens."""


@dataclasses.dataclass(frozen=True)
class Model:
  """A loaded backbone.

  Attributes:
    loaded: architecture, weights and vocabulary.
  """

  loaded: Loaded

  def logits(
    self, inputs: Any, targets: Any, prompt: Product | None = None
  ) -> Float[Array, "B U V"]:
    """float32 logits at every target position.

    Args:
      inputs: token ids [B T], 0 pads. targets: token ids [B U], 0 pads; they are
        shifted right inside.
      prompt: of `tune` or `load_prompt`; None for the bare model.
    """
    inputs, targets = _ids("inputs", inputs), _ids("targets", targets)
    if inputs.shape[0] != targets.shape[0]:
      raise ValueError(
        f"`inputs` has {inputs.shape[0]} rows and `targets` {targets.shape[0]}; give "
        "one row of each for an example."
      )
    ready = answer.session(self.loaded, prompt)
    batch = core_model.features(inputs, targets, ready.model.lengths)
    front = ready.model.lengths.get("decoder", 0)
    return ready.model.logits(ready.params, batch)[:, front:]


def _ids(name: str, values: Any) -> Array:
  values = np.asarray(values)
  if values.ndim != 2 or not np.issubdtype(values.dtype, np.integer):
    raise ValueError(
      f"`{name}` must be token ids [B, length], got {values.dtype} {values.shape}."
    )
  return jax.numpy.asarray(values, jax.numpy.int32)


def load_model(
  path_or_name: str = "mini",
  dtype: str | None = None,
  weights_dtype: str | None = None,
  vocabulary: Any = None,
) -> Model:
  """A backbone by name ("mini" comes with the library) or by folder.

  Args:
    path_or_name: see `interop.load.load`.
    dtype: of activations, "float32" or "bfloat16"; None for float32.
    weights_dtype: to cast the weights to as they are read ("int8" for the matrices of a
      frozen model); None keeps the stored one.
    vocabulary: path of a spiece.model or a tokenizer.json, "bytes", or a vocabulary of
      `data.vocabularies` or SeqIO; None takes the one beside the weights.

  Raises:
    ValueError: if a file is missing, damaged, or does not fit the others.
  """
  compilation.keep()
  vocabulary = located(vocabulary, "vocabulary")
  loaded = load(path_or_name, vocabulary=vocabulary, weights_dtype=weights_dtype)
  if dtype is not None:
    bound = dataclasses.replace(loaded.backbone.config, dtype=dtype)
    backbone = dataclasses.replace(loaded.backbone, config=bound)
    loaded = dataclasses.replace(loaded, backbone=backbone)
  return Model(loaded)


def load_prompt(path: str, task: int | None = None) -> Product:
  """The prompt of a `prompt/` folder, or of another library.

  Args:
    path: see `interop.prompts.load`. task: which prompt of a multitask adapter.
  """
  return prompts.load(path, task)


def tune(
  model: Model,
  train: Sequence[tuple[str, str]],
  method: str = "prompt_tuning",
  validation: Sequence[tuple[str, str]] | None = None,
  steps: int = 300,
  seed: int = 0,
  init: str | None = None,
  recorder: Any = None,
  **overrides: Any,
) -> Product:
  """Trains a prompt on pairs of texts.

  Args:
    model: of `load_model`; it is not changed.
    train: (input, target) pairs.
    method: a file of `gin/methods/`, without its ending.
    validation: pairs; the prompt of the best evaluation is returned.
    steps: TRAIN_STEPS; the learning rate falls to 0 at the last one.
    seed: of the prompt, the order and the dropout.
    init: a file of `gin/inits/`, such as "class_labels"; None keeps the method's own.
    recorder: told of metrics; None keeps silent.
    **overrides: macros in lower case, such as prompt_length=20, learning_rate=0.3,
      batch_size=32, eval_period=50.

  Returns:
    The prompt; `save(folder)` keeps it, `card["scores"]` holds its best evaluation.

  Raises:
    ValueError: for an unknown method or override, empty data, or a prompt that does
      not fit.
  """
  _check_pairs("train", train)
  if validation is not None:
    _check_pairs("validation", validation)
  labels = _labels(train)
  task = Lists(
    name="lists",
    train=list(train),
    validation=None if validation is None else list(validation),
    labels=labels,
    metrics=("accuracy",) if labels else (),
  )
  settings = _settings(
    method, init, steps, seed, task, overrides, validation is not None
  )
  vocabulary = model.loaded.vocabulary
  prompted = PromptedModel(model.loaded.backbone, settings["PROMPT"])
  layout = _layout([*train, *(validation or [])], vocabulary, prompted, settings)
  recipe = fit.Recipe(
    trainable=settings["TRAINABLE"],
    objective=settings["OBJECTIVE"],
    optimizer=settings["OPTIMIZER"],
    plan=loop.Plan(
      settings["TRAIN_STEPS"],
      settings["LOG_PERIOD"],
      settings["EVAL_PERIOD"],
      0,
      settings["BEST_METRIC"],
      settings["PATIENCE"],
    ),
    batch_size=settings["BATCH_SIZE"],
    eval_batch_size=settings["EVAL_BATCH_SIZE"],
    microbatches=settings["MICROBATCHES"],
    seed=seed,
    dropout=settings["DROPOUT_RATE"] > 0 or fit.drops(settings["PROMPT"]),
    sharding=settings["SHARDING"],
    cache_codes=settings["CACHE_CODES"],
  )
  fitted = fit.fit(
    prompted,
    model.loaded.params,
    vocabulary,
    task,
    layout,
    recipe,
    Choice() if labels else None,
    recorder or Quiet(),
  )
  facts = fit.facts(
    model.loaded, method, layout, task, output=Choice() if labels else None
  )
  return fit.product_of(prompted, fitted.params, fitted.trainable, facts, fitted.best)


def _settings(
  method: str,
  init: str | None,
  steps: int,
  seed: int,
  task: Any,
  overrides: dict,
  validated: bool,
) -> dict[str, Any]:
  """The macros that `tune` reads, with the method's own numbers where none is given."""
  known = config.methods()
  if method not in known:
    raise ValueError(config.nearest("method", method, set(known)))
  given = {name.upper(): value for name, value in overrides.items()}
  fixed = {"MODEL_DIR": None, "TASK": None, "SEED": seed}
  labelled = bool(task.labels) and validated
  defaults = {
    "PROMPT_LENGTH": 20,
    "LABELS": list(task.labels or ()),
    "EVAL_PERIOD": max(steps // 6, 1),
    "WARMUP_STEPS": min(20, steps // 10),
    "BEST_METRIC": "accuracy" if labelled else "loss",
  }
  files = ["gin/train.gin", "gin/schedules/warmup_linear.gin"]
  files.append(f"gin/methods/{method}.gin")
  if init is not None:
    inits = config.inits()
    if init not in inits:
      raise ValueError(config.nearest("initialisation", init, set(inits)))
    files.append(f"gin/inits/{init}.gin")
  config.parse(files, check=False)
  names = config.names()
  if method != "unprompted":
    fixed["TRAIN_STEPS"] = steps
  bindings = {name: value for name, value in defaults.items() if name in names}
  bindings |= given | fixed
  config.parse(files, [f"{name} = {value!r}" for name, value in bindings.items()])
  return config.macros(
    "PROMPT TRAINABLE OBJECTIVE OPTIMIZER TRAIN_STEPS LOG_PERIOD EVAL_PERIOD "
    "BEST_METRIC PATIENCE BATCH_SIZE EVAL_BATCH_SIZE MICROBATCHES DROPOUT_RATE "
    "PROMPT_PLACE TRUNCATE SHARDING CACHE_CODES"
  )


def _check_pairs(name: str, pairs: Any) -> None:
  if not pairs:
    raise ValueError(f"`{name}` is empty; give at least one (input, target) pair.")
  for i, pair in enumerate(pairs):
    texts = isinstance(pair, (tuple, list)) and all(isinstance(x, str) for x in pair)
    if not texts or len(pair) != 2:
      raise ValueError(
        f"`{name}[{i}]` is {pair!r}; it must be a pair of texts (input, target)."
      )


def _labels(pairs: Sequence[tuple[str, str]]) -> tuple[str, ...] | None:
  """The targets as labels, where they are few and repeat."""
  found = tuple(dict.fromkeys(target for _, target in pairs))
  repeats = len(found) <= min(MOST_LABELS, len(pairs) // 2)
  return tuple(sorted(found)) if repeats and len(found) > 1 else None


def _layout(
  pairs: Sequence[tuple[str, str]], vocabulary: Any, model: PromptedModel, settings: Any
) -> Layout:
  def longest(side: int) -> int:
    sizes = (len(vocabularies.with_end(vocabulary, pair[side])) for pair in pairs)
    return -(-max(sizes) // ROUND) * ROUND

  return Layout(
    longest(0),
    min(longest(1), 8) if longest(1) <= 8 else longest(1),
    model.lengths.get("encoder", 0),
    model.lengths.get("decoder", 0),
    settings["PROMPT_PLACE"],
    settings["TRUNCATE"],
  )


def predict(
  model: Model,
  prompt: Product | None,
  texts: Sequence[str],
  steps: int | None = None,
  inputs: str | None = None,
) -> list[str]:
  """Answers in words, one a text.

  Args:
    texts: texts, or {column: text} of the template's columns.
    steps: tokens to write at the most, greedily; None writes as training did, or 32.
    inputs: template of the whole input, such as "review: {text}"; None takes the one
      trained with, "{text}" takes a text as it is.
  """
  ready = answer.session(model.loaded, prompt)
  records = ready.answers(ready.texts(texts, inputs), None, ready.words(steps))
  return [record["prediction"] for record in records]


def classify(
  model: Model,
  prompt: Product | None,
  texts: Sequence[str],
  labels: Sequence[str],
  normalize_by_length: bool | None = None,
  inputs: str | None = None,
) -> tuple[list[str], np.ndarray]:
  """The likeliest label of each text, and log-probabilities [B K] of all labels.

  Args:
    texts, inputs: as for `predict`. labels: what to choose among.
    normalize_by_length: see `outputs.choice.Choice`; None does as training did.
  """
  ready = answer.session(model.loaded, prompt)
  output = ready.choice(normalize_by_length)
  records = ready.answers(ready.texts(texts, inputs), labels, output)
  scores = [[record["scores"][label] for label in labels] for record in records]
  return [record["prediction"] for record in records], np.array(scores)


def score(
  model: Model,
  prompt: Product | None,
  pairs: Sequence[tuple[str, str]],
  inputs: str | None = None,
) -> np.ndarray:
  """Log-probability [B] of each pair's target, whole, given its input.

  Args:
    pairs: (input, target). inputs: as for `predict`.
  """
  _check_pairs("pairs", pairs)
  ready = answer.session(model.loaded, prompt)
  vocabulary = model.loaded.vocabulary
  texts = ready.texts([source for source, _ in pairs], inputs)
  examples = [
    {**example, "targets": vocabularies.with_end(vocabulary, target)}
    for example, (_, target) in zip(
      answer.examples(vocabulary, texts), pairs, strict=True
    )
  ]
  layout = ready.layout(examples, targets=True)
  run = jax.jit(functools.partial(scoring.score, ready.model))
  found = evaluate.in_order(
    lambda batch, numbers: jax.device_get(run(ready.params, batch)),
    examples,
    layout,
    min(answer.ROWS, len(pairs)),
    None,
    ready.most(answer.ROWS),
  )
  return np.array(found)

"""`tune`: a prompt from pairs of texts, for notebooks."""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from prompt_tuning import arguments, as_gin, keeping, keywords, sources, watching
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.data import vocabularies
from prompt_tuning.data.features import ROUND
from prompt_tuning.data.lists import Lists
from prompt_tuning.engine import config, fit, gin_state, loop, optimizer
from prompt_tuning.engine.facts import card_facts, product_of
from prompt_tuning.engine.made import Made
from prompt_tuning.engine.product import Product
from prompt_tuning.interop import teachers as teaching
from prompt_tuning.wishes import OUTPUTS, Wish, wished

# Macros that a run here is made of.
WANTED = "PROMPT HEAD RECIPE READING"
# Where neither `steps` nor `epochs` says it.
STEPS = 300
# That of gin/train.gin, which no method changes.
BATCH_SIZE = 32


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


def tune(
  model: Any,
  train: Any,
  method: str = "prompt_tuning",
  validation: Any = None,
  steps: int | None = None,
  seed: int = 0,
  init: str | None = None,
  recorder: Any = None,
  *,
  epochs: float | None = None,
  inputs: str | None = None,
  targets: str | None = None,
  labels: Sequence[str] | None = None,
  metrics: Sequence[str] | str | None = None,
  output: Any = None,
  optimizer: Any = None,
  objective: Any = None,
  teachers: Mapping[str, Any] | None = None,
  callbacks: Any = None,
  progress: bool = True,
  model_dir: Any = None,
  **overrides: Any,
) -> Product:
  """Trains a prompt on pairs of texts.

  gin's configuration of the process stays as it is, and several threads may tune.

  Args:
    model: of `load_model`; it is not changed.
    train: (input, target) pairs: a list, a generator, an array or a table [N 2]; or
      rows with named columns: a frame of pandas or polars, a `datasets.Dataset`, or the
      path of a TSV, CSV or JSONL file.
    method: a file of `gin/methods/`, without its ending.
    validation: as `train`; the prompt of the best evaluation is returned.
    steps: TRAIN_STEPS, 300 if None; the learning rate falls to 0 at the last one. The
      method "unprompted" trains nothing.
    seed: of the prompt, the order and the dropout.
    init: a file of `gin/inits/`, such as "class_labels"; None keeps the method's own.
    recorder: told of metrics and in words (`engine.log.Log`, say), in place of the bar.
    epochs: how often each example is seen, in place of `steps`.
    inputs, targets: of rows with named columns, a column or a template such as
      "review: {text}"; None takes "text" and "label". `predict` reads texts alike.
    labels: the targets of a classification. None guesses them where the targets are few
      and repeat; the recorder is told, and the card says so.
    metrics: names in `data/metrics.py`; None for accuracy where there are labels, and
      for exact_match where answers are written.
    output: how validation is answered: "choice", "greedy", "beam", "sample", "none" for
      the loss alone, or a setting of `outputs/`. None chooses among labels, and writes
      greedily without any. "label", "labels" (targets such as "a|b") and "number" are
      answered by a head, which trains beside the prompt.
    optimizer: "adafactor", "adamw", one of `engine/optimizer.py`, or a transformation
      of optax, used as it is; None keeps Adafactor.
    objective: one of `objectives/`; None keeps the method's own.
    teachers: name -> prompt, or its folder, that the objective learns from.
    callbacks: a function or several, each called with the step and its metrics,
      {"split": "train", "loss": ...}. What one raises ends training.
    progress: a bar, in a notebook or on a terminal; False for silence.
    model_dir: folder of a run as `train` writes it: checkpoints, metrics, the prompt of
      the best step. The same call goes on where one was stopped; Ctrl-C saves first.
      None writes nothing.
    **overrides: macros in lower case, such as prompt_length=20, learning_rate=0.3,
      batch_size=32, eval_period=50, dropout_rate=0.1, pack_segments=4.

  Returns:
    The prompt; `save(folder)` keeps it, `card["scores"]` holds its best evaluation,
    its card also holds the configuration as gin text. `history`, `plot()` and
    `to_gin()` say how it came about.

  Raises:
    ValueError: for an argument that is unknown, does not fit or would do nothing, for
      empty data, or a prompt that does not fit.

  >>> import prompt_tuning as pt
  >>> model = pt.load_model("mini")
  >>> train = [("a lovely film", "good"), ("a dull film", "bad")] * 4
  >>> prompt = pt.tune(model, train, steps=2, prompt_length=4, progress=False)
  >>> prompt
  Product(method='prompt_tuning', trained=768, step=2, backbone='mini')
  """
  arguments.check_model(model)
  given = sources.read("train", train, inputs, targets)
  judged = None
  if validation is not None:
    judged = sources.read("validation", validation, inputs, targets)
    if (given.inputs is None) != (judged.inputs is None):
      raise ValueError(
        "One of `train` and `validation` has named columns, and the other holds pairs. "
        "Give both alike."
      )
  wish = wished(
    *(given, judged, labels, metrics, output),
    method=arguments.text("method", method),
    init=init,
    steps=steps_of(steps, epochs, len(given.pairs), overrides),
    writes=model.loaded.backbone.format.writes,
    seed=arguments.whole("seed", seed, 0),
    optimizer=optimizer,
    overrides=keywords.checked(
      overrides, validation is not None, model_dir is not None
    ),
    folder=keeping.place(model_dir),
  )
  arguments.flag("progress", progress)
  watch = watching.Watch(wish.steps, recorder, watching.checked(callbacks), progress)
  if wish.guessed:
    watch.say(
      f"The targets are taken for the labels {list(wish.task.labels)}; give labels=, "
      'or output="greedy" to write answers instead.'
    )
  splits = {"train": given} | ({} if judged is None else {"validation": judged})
  try:
    with keywords.in_words():
      taught = teaching.read(teachers or {}, model.loaded)
      return _tuned(model.loaded, wish, watch, objective, taught, splits)
  finally:
    watch.close()


def steps_of(
  steps: Any, epochs: Any, examples: int, overrides: Mapping[str, Any]
) -> int:
  """How many steps are asked for, by either argument."""
  if epochs is None:
    return arguments.whole("steps", STEPS if steps is None else steps, 0)
  if steps is not None:
    raise ValueError("`steps` and `epochs` both say how long; give one of them.")
  number = isinstance(epochs, int | float) and not isinstance(epochs, bool)
  if not number or not 0 < epochs < math.inf:
    raise ValueError(f"`epochs` is {epochs!r}; it must be a number above 0.")
  low = {name.lower(): value for name, value in overrides.items()}
  if low.get("pack_segments", 1) != 1:
    raise ValueError(
      "`epochs` counts batches of single examples, but pack_segments= puts several "
      "into a row. Give steps=."
    )
  size = arguments.whole("batch_size", low.get("batch_size", BATCH_SIZE), 1)
  return max(math.ceil(epochs * examples / size), 1)


def _tuned(
  loaded: Any,
  wish: Wish,
  recorder: watching.Watch,
  objective: Any,
  teachers: Mapping[str, Any],
  splits: Mapping[str, sources.Source],
) -> Product:
  vocabulary, task = loaded.vocabulary, wish.task
  longest = longest_of(task, vocabulary)
  with gin_state.isolated():
    settings, files, bindings = settings_of(wish, longest, loaded.name)
    text = config.text()
  recipe = settings["RECIPE"]
  if objective is not None:
    recipe = dataclasses.replace(recipe, objective=objective)
  backbone = loaded.backbone.recast(dropout_rate=recipe.dropout_rate)
  segments, head = recipe.pack_segments, settings["HEAD"]
  prompted = PromptedModel(backbone, settings["PROMPT"], segments, head=head)
  layout = settings["READING"].layout(prompted)
  output = settings["OUTPUT"] if wish.validated or wish.headed else None
  card = card_facts(loaded, wish.method, layout, task, text, output, recipe)
  if wish.guessed:
    card["task"]["labels_guessed"] = True
  given = _by_hand(wish, objective)
  if given:
    # What gin's text does not say.
    card["given"] = given
  objects = [*given, *(["teachers"] if teachers else [])]
  if wish.folder is None:
    parts = prompted, loaded.params, vocabulary, task, layout, recipe, output, recorder
    fitted = fit.fit(*parts, teachers=teachers)
    made = product_of(prompted, fitted.params, fitted.trainable, card, fitted.best)
    lines = recorder.lines
  else:
    ready = fit.prepare(
      *(prompted, loaded.params, vocabulary, task, layout, recipe, output), teachers
    )
    made = keeping.run(wish.folder, text, loaded, task, ready, card, recorder, objects)
    lines = made.history
  said = functools.partial(
    as_gin.of_call, loaded, wish, files, bindings, splits, objects
  )
  return dataclasses.replace(made, made=Made(lines, loaded, said))


def _by_hand(wish: Wish, objective: Any) -> dict[str, str]:
  """Arguments that were given as objects, in words."""
  found = {
    "output": wish.output,
    "optimizer": wish.optimizer,
    "objective": objective,
  }
  return {
    name: _shown(value)
    for name, value in found.items()
    if value is not None and not isinstance(value, str)
  }


def _shown(value: Any) -> str:
  """What was given, without the addresses that differ between processes."""
  return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def longest_of(task: Lists, vocabulary: Any) -> dict[str, int]:
  """Lengths that hold every example whole."""
  pairs = [pair for split in task.splits for pair in getattr(task, split)]
  found = {}
  for side, name in enumerate(("inputs", "targets")):
    sizes = (len(vocabularies.with_end(vocabulary, pair[side])) for pair in pairs)
    found[name] = -(-max(sizes) // ROUND) * ROUND
  return found


def settings_of(
  wish: Wish, longest: Mapping[str, int], name: str
) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
  """The macros that a run needs, with the method's own numbers where none is given.

  Also the gin files, and the bindings behind them, that it is made of.
  """
  files = _files(wish)
  config.parse(files, check=False)
  names = config.names()
  if config.is_phased():
    raise ValueError(
      f"`method` is {wish.method!r}, a run of several phases, and tune trains one. Run "
      "`python -m prompt_tuning.train` with its gin file."
    )
  given = {name.upper(): value for name, value in wish.overrides.items()}
  by_hand = optimizer.as_is(wish.optimizer)
  wanted = set(WANTED.split())
  if isinstance(wish.output, str):
    wanted.add("OUTPUT")
  without = () if by_hand is None else ("OPTIMIZER",)
  reached = gin_state.reached(wanted, without)
  keywords.check_reached(given, names, reached, wish.method)
  bindings = {k: v for k, v in _defaults(wish, longest).items() if k in names}
  lengths = given.get("TASK_FEATURE_LENGTHS", {})
  bindings |= given | {"TASK_FEATURE_LENGTHS": {**longest, **lengths}}
  # For who reads the card.
  bindings["INITIAL_CHECKPOINT_PATH"] = None if name == "random" else name
  lines = [f"{name} = {value!r}" for name, value in bindings.items()]
  if isinstance(wish.optimizer, str):
    lines.append(f"RULE = @optimizer.{optimizer.named(wish.optimizer)}()")
  config.parse(files, lines)
  settings = config.macros(" ".join(sorted(wanted)))
  settings.setdefault("OUTPUT", wish.output)
  recipe = settings["RECIPE"]
  if by_hand is None and wish.optimizer and not isinstance(wish.optimizer, str):
    by_hand = dataclasses.replace(recipe.optimizer, rule=wish.optimizer)
  if by_hand is not None:
    settings["RECIPE"] = dataclasses.replace(recipe, optimizer=by_hand)
  return settings, files, bindings


def _files(wish: Wish) -> list[str]:
  known = config.methods()
  if wish.method not in known:
    raise ValueError(config.nearest("method", wish.method, set(known)))
  files = ["gin/train.gin", "gin/schedules/warmup_linear.gin"]
  files.append(f"gin/methods/{wish.method}.gin")
  if wish.init is not None:
    inits = config.inits()
    if wish.init not in inits:
      raise ValueError(config.nearest("initialisation", wish.init, set(inits)))
    config.parse(files, check=False)
    if "PROMPT_INIT" not in gin_state.reached({"PROMPT"}):
      raise ValueError(
        f"`init` is {wish.init!r}, but the method {wish.method!r} draws no prompt that "
        "an initialisation fills. Leave it out."
      )
    files.append(f"gin/inits/{wish.init}.gin")
  if wish.headed:
    if not config.brings(wish.method, "gin/heads/"):
      files.append("gin/heads/pooled.gin")
    files.append(f"gin/objectives/{wish.headed}.gin")
  if isinstance(wish.output, str) and OUTPUTS[wish.output]:
    files.append(f"gin/outputs/{OUTPUTS[wish.output]}.gin")
  return files


def _defaults(wish: Wish, longest: Mapping[str, int]) -> dict[str, Any]:
  labels, metrics = wish.task.labels, wish.task.metrics
  best = wish.validated and labels and "accuracy" in metrics and wish.output != "none"
  if wish.init == "class_labels" and not labels:
    raise ValueError('`init` "class_labels" starts from labels; give labels=.')
  found = {
    "PROMPT_LENGTH": 20,
    "LABELS": list(labels or ()),
    "EVAL_PERIOD": max(wish.steps // 6, 1),
    "WARMUP_STEPS": min(20, wish.steps // 10),
    "BEST_METRIC": "accuracy" if best else "loss",
    "DECODE_STEPS": longest["targets"],
    "MODEL_DIR": wish.folder,
    "TASK": None,
    "SEED": wish.seed,
    "TRAIN_STEPS": wish.steps,
  }
  if wish.method == "unprompted":
    del found["TRAIN_STEPS"]
  return found

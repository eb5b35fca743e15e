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

from prompt_tuning import answer, arguments, looking
from prompt_tuning.core import trainable as branches
from prompt_tuning.core.backbone import check_writes
from prompt_tuning.core.context import Spec
from prompt_tuning.data import vocabularies
from prompt_tuning.decoding import score as scoring
from prompt_tuning.engine import compilation, evaluate, history
from prompt_tuning.engine.combine import combine as combine
from prompt_tuning.engine.listed import Text
from prompt_tuning.engine.made import Made
from prompt_tuning.engine.product import Product
from prompt_tuning.engine.programs import Programs
from prompt_tuning.interop import prompts
from prompt_tuning.interop.load import Loaded, load
from prompt_tuning.interop.vocabulary import located
from prompt_tuning.tuning import Quiet as Quiet
from prompt_tuning.tuning import tune as tune


@dataclasses.dataclass(frozen=True)
class Model:
  """A loaded backbone.

  Attributes:
    loaded: architecture, weights and vocabulary.
    programs: compiled for questions that were asked before.
  """

  loaded: Loaded
  programs: Programs = dataclasses.field(
    default_factory=Programs, compare=False, repr=False
  )

  def __repr__(self) -> str:
    backbone, count = self.loaded.backbone, branches.count(self.loaded.params)
    spec = backbone.spec
    return (
      f"Model({self.loaded.name!r}, {backbone.family}, {count:,} numbers, width "
      f"{spec.width}, {spec.vocabulary:,} tokens, {backbone.switches['dtype']})"
    )

  def summary(self, method: str = "prompt_tuning", **overrides: Any) -> Text:
    """What a method would train of how much; nothing is drawn, no step is compiled.

    Args:
      method, overrides: as of `tune`.

    Raises:
      ValueError: for a method or an override that there is not.

    >>> import prompt_tuning as pt
    >>> pt.load_model("mini").summary(prompt_length=20)
    backbone                    mini (t5)
    numbers                     6,098,112
    method                      prompt_tuning
    trains                      3,840 (0.063 % of all)
    prompt/parameterise/prompt  1 x 20 x 192
    positions                   20 in front of the encoder
    """
    return looking.summary(self.loaded, method, overrides)

  def logits(
    self, inputs: Any, targets: Any = None, prompt: Product | None = None
  ) -> Float[Array, "B U V"]:
    """float32 logits at every target position.

    Args:
      inputs: token ids [B T]. targets: token ids [B U]; they are shifted right inside.
        Both are padded behind, with the family's own id (`Spec.ids`: 0 in a T5, -1 in
        a decoder). Without targets, which a decoder alone takes, logits are those
        behind every token of the inputs [B T V].
      prompt: of `tune` or `load_prompt`; None for the bare model.
    """
    arguments.check_model(self, prompt)
    check_writes(self.loaded.backbone, "`logits`")
    spec = self.loaded.backbone.spec
    inputs = _ids("inputs", inputs, spec)
    if targets is None:
      return self._whole(inputs, prompt)
    targets = _ids("targets", targets, spec)
    if inputs.shape[0] != targets.shape[0]:
      raise ValueError(
        f"`inputs` has {inputs.shape[0]} rows and `targets` {targets.shape[0]}; give "
        "one row of each for an example."
      )
    ready = answer.session(self.loaded, prompt)
    batch = ready.model.features(inputs, targets)
    front = batch["targets"].shape[1] - targets.shape[1]
    return ready.model.logits(ready.params, batch)[:, front:]

  def _whole(self, ids: Array, prompt: Product | None) -> Float[Array, "B T V"]:
    """Logits behind every token of rows that are read and written at once."""
    ready = answer.session(self.loaded, prompt)
    if not self.loaded.backbone.format.joined:
      raise ValueError(
        "`targets` is None, but this backbone reads inputs by an encoder and has "
        "logits at targets alone: give the ids of some."
      )
    if prompt is not None and prompt.module is not None and prompt.module.reads_text:
      raise ValueError(
        "`targets` is None, but this prompt reads the input, which must end somewhere: "
        "give the ids of both."
      )
    batch = ready.model.features(ids[:, :1], ids)
    return ready.model.logits(
      ready.params, {**batch, "decoder_inputs": ids, "targets": ids}
    )

  def embed(
    self, texts: Any, pool: str = "mean", prompt: Product | None = None
  ) -> np.ndarray:
    """One float32 vector a text [B H], of an encoder.

    Args:
      texts: a list, a generator, an array of text or a column of a table.
      pool: "mean" of the last states, "first" of them, or "pooler" where the files hold
        a trained one.
      prompt: of `tune` or `load_prompt`, which the encoder reads too; None for none.

    Raises:
      ValueError: for a backbone that writes, or another `pool`.
    """
    arguments.check_model(self, prompt)
    backbone = self.loaded.backbone
    if backbone.format.writes:
      raise ValueError(
        f"`embed` is of encoders, but the backbone is of the family {backbone.family}. "
        "Load one, such as 'minilm'."
      )
    if pool not in backbone.views:
      raise ValueError(
        f"`pool` is {pool!r}, but this encoder gives {list(backbone.views)}."
      )
    ready = answer.session(self.loaded, prompt)
    whole = ready.texts(arguments.inputs("texts", texts))
    return answer.embeddings(ready, whole, pool, self.programs)


def _ids(name: str, values: Any, spec: Spec) -> Array:
  try:
    values = np.asarray(values)
  except (ValueError, OverflowError) as error:  # rows of several lengths
    raise ValueError(
      f"`{name}` must be token ids [B, length], all rows of one length: {error}"
    ) from error
  whole = np.issubdtype(values.dtype, np.integer)
  if values.ndim != 2 or not whole or 0 in values.shape:
    raise ValueError(
      f"`{name}` must be token ids [B, length], got {values.dtype} {values.shape}."
    )
  least, count = min(spec.ids.pad, 0), spec.vocabulary
  if not least <= values.min() <= values.max() < count:
    raise ValueError(
      f"`{name}` must be ids from {least} to {count - 1}, the backbone's tokens; got "
      f"{values.min()} to {values.max()}."
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

  >>> import prompt_tuning as pt
  >>> pt.load_model("mini")
  Model('mini', t5, 6,098,112 numbers, width 192, 8,192 tokens, float32)
  """
  dtypes = "float32", "bfloat16"
  if dtype is not None and dtype not in dtypes:
    raise ValueError(f"`dtype` must be one of {dtypes} or None, got {dtype!r}.")
  compilation.keep()
  vocabulary = located(vocabulary, "vocabulary")
  loaded = load(path_or_name, vocabulary=vocabulary, weights_dtype=weights_dtype)
  if dtype is not None:
    loaded = dataclasses.replace(loaded, backbone=loaded.backbone.recast(dtype=dtype))
  return Model(loaded)


def load_prompt(path: str, task: int | None = None) -> Product:
  """The prompt of a `prompt/` folder, of the run that holds one, or of another library.

  Args:
    path: see `interop.prompts.load`. task: which prompt of a multitask adapter.

  Raises:
    ValueError: if there is none, or its files are damaged.
  """
  found = prompts.load(path, task)
  return dataclasses.replace(found, made=Made(history.near(path)))


def _session(model: Model, prompt: Product | None) -> answer.Session:
  arguments.check_model(model, prompt)
  return answer.session(model.loaded, prompt)


def predict(
  model: Model,
  prompt: Product | None,
  texts: Sequence[str],
  steps: int | None = None,
  inputs: str | None = None,
  *,
  task: Any = None,
  external: Any = None,
) -> list[str]:
  """Answers in words, one a text.

  Args:
    model: of `load_model`. prompt: of `tune` or `load_prompt`; None for the bare model.
    texts: a list, a generator, an array of text or a column of a table; or of
      {column: text}, for the columns of the template.
    steps: tokens to write at the most, greedily; None writes as training did, or 32.
    inputs: template of the whole input, such as "review: {text}"; None takes the one
      trained with, "{text}" takes a text as it is.
    task: for a prompt that tells tasks apart, the number or name of one for all texts,
      or of one for each.
    external: vectors [B C], for a prompt that reads some.

  >>> import prompt_tuning as pt
  >>> model = pt.load_model("mini")
  >>> answers = pt.predict(model, None, ["a film"], steps=2)
  >>> len(answers), type(answers[0]).__name__
  (1, 'str')
  """
  ready = _session(model, prompt)
  output = ready.words(None if steps is None else arguments.whole("steps", steps, 1))
  inputs = arguments.template("inputs", inputs)
  whole = ready.texts(arguments.inputs("texts", texts), inputs)
  beside = ready.wants.beside(len(whole), task, external)
  records = ready.answers(whole, None, output, model.programs, beside)
  return [record["prediction"] for record in records]


def classify(
  model: Model,
  prompt: Product | None,
  texts: Sequence[str],
  labels: Sequence[str] | None = None,
  normalize_by_length: bool | None = None,
  inputs: str | None = None,
  *,
  task: Any = None,
  external: Any = None,
) -> tuple[list[str], np.ndarray]:
  """The likeliest label of each text, and log-probabilities [B K] of all labels.

  Args:
    model, prompt, texts, inputs, task, external: as in `predict`.
    labels: K different texts; None takes those that the prompt was trained on, of the
      one task where it was trained on several.
    normalize_by_length: see `outputs.choice.Choice`; None does as training did.

  >>> import prompt_tuning as pt
  >>> model = pt.load_model("mini")
  >>> labels, scores = pt.classify(model, None, ["a film"], ["bad", "good"])
  >>> labels[0] in ("bad", "good"), scores.shape
  (True, (1, 2))
  """
  ready = _session(model, prompt)
  inputs = arguments.template("inputs", inputs)
  whole = ready.texts(arguments.inputs("texts", texts), inputs)
  beside = ready.wants.beside(len(whole), task, external)
  if labels is None:
    labels = ready.labels({int(one["task"]) for one in beside if "task" in one})
    if not labels:
      raise ValueError("`labels` is None, and the prompt's card names none. Give them.")
  labels = arguments.labels(labels)
  output = ready.choice(arguments.flag("normalize_by_length", normalize_by_length))
  records = ready.answers(whole, labels, output, model.programs, beside)
  scores = [[record["scores"][label] for label in labels] for record in records]
  found = np.array(scores).reshape(len(records), len(labels))
  return [record["prediction"] for record in records], found


def score(
  model: Model,
  prompt: Product | None,
  pairs: Sequence[tuple[str, str]],
  inputs: str | None = None,
  *,
  task: Any = None,
  external: Any = None,
) -> np.ndarray:
  """Log-probability [B] of each pair's target, whole, given its input.

  Args:
    model, prompt, inputs, task, external: as in `predict`.
    pairs: (input, target) texts: a list, a generator, an array or a table [B 2].

  >>> import prompt_tuning as pt
  >>> model = pt.load_model("mini")
  >>> found = pt.score(model, None, [("a film", "good"), ("a film", "bad")])
  >>> found.shape, bool((found < 0).all())
  ((2,), True)
  """
  ready = _session(model, prompt)
  check_writes(model.loaded.backbone, "`score`")
  pairs = arguments.pairs("pairs", pairs)
  vocabulary = model.loaded.vocabulary
  inputs = arguments.template("inputs", inputs)
  whole = ready.texts([source for source, _ in pairs], inputs)
  beside = ready.wants.beside(len(whole), task, external)
  examples = answer.examples(vocabulary, whole, beside)
  for example, (_, target) in zip(examples, pairs, strict=True):
    example["targets"] = vocabularies.with_end(vocabulary, target)
  layout = ready.layout(examples, targets=True)
  run = model.programs.get(
    ready.model.prompt,
    ("score",),
    lambda: jax.jit(functools.partial(scoring.score, ready.model)),
  )
  found = evaluate.in_order(
    lambda batch, numbers: jax.device_get(run(ready.params, batch)),
    examples,
    layout,
    answer.few(len(pairs)),
    None,
    ready.most(answer.ROWS),
  )
  return np.array(found)

"""What those who answer share: a prompt on its backbone, read as it was trained.

Inputs are read, cut and scored as the prompt's card says that training did, see
`engine.conventions`.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning.core import files
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.core.trainable import flatten
from prompt_tuning.data import given, vocabularies
from prompt_tuning.data import reading as readings
from prompt_tuning.data.features import ROUND, Layout
from prompt_tuning.data.task import split_mark
from prompt_tuning.engine import conventions, evaluate, identity, product, rows
from prompt_tuning.engine.conventions import Conventions
from prompt_tuning.engine.programs import Programs
from prompt_tuning.interop import prompts
from prompt_tuning.interop.load import Loaded, load
from prompt_tuning.outputs import output as outputs

# Rows of a batch of texts from Python.
ROWS = 64
# Tokens of an answer in words where neither the caller nor the card says how many.
STEPS = 32
# Of the first record of a file, with room for a text of any length.
_MOST_LINE = 64 << 20


@dataclasses.dataclass(frozen=True)
class Session:
  """Attributes:
  loaded: the backbone. prompt: its product, or None for the bare model.
  model, params: both together.
  known: what the prompt's card says of reading and answering.
  most_positions: inputs that may be longer than in training are cut to so many tokens,
    and to no fewer than in training; None cuts none of them.
  """

  loaded: Loaded
  prompt: product.Product | None
  model: PromptedModel
  params: Any
  known: Conventions = Conventions()
  most_positions: int | None = rows.MOST_POSITIONS

  @property
  def limit(self) -> int | None:
    """Tokens of an input that are read; None for all."""
    if self.known.truncate and self.known.inputs:
      return self.known.inputs
    form = self.model.backbone.format
    if form.most is not None:
      return form.most - form.opened - form.reserved(self.model.lengths)["inputs"]
    if self.most_positions is None:
      return None
    return max(self.most_positions, self.known.inputs or 0)

  @property
  def wants(self) -> given.Wants:
    """What the prompt reads of an input besides its text."""
    return given.wants(self.model.prompt, self.known.names)

  def most(self, size: int) -> int:
    """What batches of `size` usual rows may hold; see `engine.rows`."""
    model = self.model
    reserved = model.backbone.format.reserved(model.lengths)["inputs"]
    return rows.bound(size, (self.known.inputs or 0) + reserved)

  @property
  def digest(self) -> str:
    """Says which backbone, vocabulary and prompt these are, numbers included."""
    found = hashlib.sha256(str(self.loaded.fingerprint).encode())
    found.update(identity.words(self.loaded.vocabulary).encode())
    if self.prompt is not None:
      words = [self.prompt.card, repr(self.prompt.module), repr(self.prompt.head)]
      found.update(json.dumps(words, default=str).encode())
      tensors = {**flatten(self.prompt.frozen), **flatten(self.prompt.trainable)}
      for name in sorted(tensors):
        found.update(name.encode())
        found.update(np.ascontiguousarray(tensors[name]).tobytes())
    return found.hexdigest()

  def texts(self, values: Iterable[Any], inputs: str | None = None) -> list[str]:
    """Whole inputs of texts or of {column: text}, by a template.

    Args:
      values: what a user asks about. inputs: the template; None for the card's.

    Raises:
      ValueError: naming what does not fit.
    """
    return readings.texts(values, given_reading(self.known, inputs))

  def layout(
    self,
    examples: Sequence[Mapping[str, Any]],
    targets: bool = False,
    cut_targets: bool = False,
    say: Any = logging.warning,
  ) -> Layout:
    """The prompt's own place, and lengths that hold these examples.

    Whole, unless training cut its inputs or they are longer than `most_positions`:
    then they are cut alike, and it is said how many.

    Args:
      examples: task features. targets: whether theirs count. cut_targets: whether they
        are cut where training did. say: told of inputs that are cut.
    """
    longest = max(len(example["inputs"]) for example in examples)
    inputs = -(-longest // ROUND) * ROUND
    if self.limit is not None and longest > self.limit:
      inputs = self.limit
      say("%s", self.cut_text(self.cut(examples), len(examples)))
    length = max(len(example["targets"]) for example in examples) if targets else 1
    if cut_targets and self.known.truncate and self.known.targets:
      length = min(length, self.known.targets)
    return Layout.of(
      self.model,
      min(inputs, self.limit or inputs),
      length,
      self.known.place,
      # Only what is longer than the limit is.
      truncate=True,
    )

  def cut(self, examples: Iterable[Mapping[str, Any]]) -> int:
    """How many inputs are longer than what is read of them."""
    if self.limit is None:
      return 0
    return sum(len(example["inputs"]) > self.limit for example in examples)

  def cut_text(self, cut: int, count: int) -> str:
    """Words for `cut` of `count` inputs."""
    why = "as in training"
    if not self.known.truncate:
      why = "MOST_POSITIONS, which bounds the memory of a row"
    return f"{cut} of {count} inputs were cut to {self.limit} tokens ({why})."

  def labels(self, tasks: Collection[int] = ()) -> Sequence[str] | None:
    """Those of the card; of a mixture, those that all of these tasks have."""
    members = self.known.members
    own = {members[k][1] for k in tasks if k < len(members)}
    return own.pop() if len(own) == 1 else self.known.labels

  def choice(self, normalize_by_length: bool | None = None) -> Any:
    """How labels are scored: as in training, unless said otherwise."""
    return outputs.choosing(self.known.output, normalize_by_length)

  def answering(self, labels: Sequence[str] | None, output: Any) -> Any:
    """The labels that an output answers with: those given, or those of the training.

    Raises:
      ValueError: for other labels than those that a head was trained for.
    """
    if output is None or not output.headed:
      return labels
    own = self.known.labels
    if labels is not None and own is not None and tuple(labels) != own:
      raise ValueError(
        f"`labels` (LABELS) are {list(labels)}, but the head was trained for "
        f"{list(own)}, in this order. Leave them out."
      )
    return own if labels is None else tuple(labels)

  def words(self, steps: int | None = None) -> Any:
    """How text is written: as in training, or greedily."""
    return outputs.writing(self.known.output, steps, STEPS)

  def answers(
    self,
    texts: Sequence[str],
    labels: Sequence[str] | None,
    output: Any,
    programs: Programs,
    beside: Sequence[Mapping[str, Any]] | None = None,
  ) -> list[dict[str, Any]]:
    """One record a text, in order; see `engine.evaluate.predictor`.

    Args:
      texts: whole inputs. labels: to choose among, or None. output: see `outputs/`.
      programs: compiled before, and kept for the next time.
      beside: what each text brings along, see `data.given`; None for nothing.
    """
    if not texts:
      return []
    vocabulary = self.loaded.vocabulary
    labels = self.answering(labels, output)
    found = examples(vocabulary, texts, beside)
    run = programs.get(
      self.model.prompt,
      (labels, output, repr(self.model.head)),
      lambda: evaluate.predictor(self.model, vocabulary, labels, output),
    )
    run = functools.partial(run, self.params)
    size, most = few(len(found)), self.most(ROWS)
    return evaluate.in_order(run, found, self.layout(found), size, None, most)


def few(count: int) -> int:
  """Rows of a batch: few sizes, so that few programs are made."""
  return min(ROWS, 1 << (count - 1).bit_length())


def session(
  loaded: Loaded, prompt: product.Product | None, force: bool = False
) -> Session:
  """Puts a prompt on a backbone.

  Raises:
    ValueError: if it belongs to another one, or its card is damaged.
  """
  if prompt is None:
    model = PromptedModel(loaded.backbone)
    return Session(loaded, None, model, {"backbone": loaded.params})
  known = conventions.of(prompt.card)
  prompt.check(loaded.fingerprint, loaded.backbone.spec.width, force)
  model = PromptedModel(loaded.backbone, prompt.module, head=prompt.head)
  return Session(loaded, prompt, model, prompt.params(loaded.params), known)


def open_prompt(
  prompt_dir: str | None, checkpoint: str | None = None
) -> tuple[product.Product | None, str]:
  """A `prompt/` folder, and the backbone to load: the card's, if none is given.

  Raises:
    ValueError: if there is neither, or the folder or its card is damaged.
  """
  prompt = None if prompt_dir is None else prompts.load(prompt_dir)
  if checkpoint is None:
    if prompt is None:
      raise ValueError(
        "`PROMPT_DIR` and `INITIAL_CHECKPOINT_PATH` are both None; give at least one."
      )
    checkpoint = prompt.backbone
  return prompt, checkpoint


def open_session(
  prompt_dir: str | None,
  checkpoint: str | None = None,
  force: bool = False,
  vocabulary: Any = None,
) -> Session:
  """Loads a `prompt/` folder and its backbone (the card's, if none is given).

  Args:
    prompt_dir, checkpoint: see `open_prompt`. force: see `session`.
    vocabulary: of the backbone; None takes the one beside it.
  """
  prompt, checkpoint = open_prompt(prompt_dir, checkpoint)
  return session(load(checkpoint, None, vocabulary), prompt, force)


def given_reading(known: Conventions, inputs: str | None) -> readings.Reading | None:
  """The card's way to read, or that of another template."""
  if inputs is None:
    return known.reading
  if known.reading is None:
    return readings.Reading(inputs)
  return dataclasses.replace(known.reading, inputs=inputs)


def examples(
  vocabulary: Any,
  texts: Iterable[str],
  beside: Sequence[Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:
  """Tokenised inputs without targets; `<prompt>` in a text marks the prompt's place.

  `beside` is what each text brings along, see `data.given`.
  """
  found = []
  for number, text in enumerate(texts):
    before, rest = split_mark(text)
    mark = -1 if before is None else len(vocabularies.encode(vocabulary, before))
    found.append(
      {
        "inputs": vocabularies.with_end(vocabulary, rest),
        "targets": [vocabulary.eos_id],
        "mark": mark,
        **(beside[number] if beside else {}),
      }
    )
  return found


def embeddings(
  ready: Session, texts: Sequence[str], view: str, programs: Programs
) -> np.ndarray:
  """What a backbone's view gives of each text, float32 [B H].

  Args:
    ready: of `session`. texts: whole inputs. view: one of the backbone's.
    programs: compiled before, and kept for the next time.
  """
  model = ready.model
  if not texts:
    return np.zeros((0, model.backbone.spec.width), np.float32)

  def seen(params: Any, batch: Any) -> Any:
    reading, injection = model.read(params, batch)
    weights = params["backbone"]
    found = model.backbone.view(weights, view, batch, reading, injection)
    return found.astype(jnp.float32)

  run = programs.get(model.prompt, ("embed", view), lambda: jax.jit(seen))
  found = examples(ready.loaded.vocabulary, texts)
  vectors = evaluate.in_order(
    lambda batch, numbers: jax.device_get(run(ready.params, batch)),
    found,
    ready.layout(found),
    few(len(found)),
    None,
    ready.most(ROWS),
  )
  return np.stack(vectors)


def json_line(record: Mapping[str, Any]) -> str:
  """A record as JSON, without a line's end; what is no finite number is null."""
  return json.dumps(finite(record), ensure_ascii=False, allow_nan=False)


def finite(value: Any) -> Any:
  """The value with None for each number that JSON does not know."""
  if isinstance(value, Mapping):
    return {key: finite(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [finite(item) for item in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value


def are_records(path: Any) -> bool:
  """Whether a file holds answers that this library wrote, or nothing."""
  with files.at(path).open("rb") as file:
    line = file.readline(_MOST_LINE)
  if not line:
    return True
  try:
    found = json.loads(line)
  except (ValueError, RecursionError):
    return False
  return isinstance(found, dict) and {"input", "prediction"} <= found.keys()


def write_lines(path: Any, records: Iterable[Mapping[str, Any]]) -> None:
  """Writes JSONL, whole or not at all, and never over what are no answers."""
  text = "".join(json_line(record) + "\n" for record in records)
  files.write_text(path, text, are_records)

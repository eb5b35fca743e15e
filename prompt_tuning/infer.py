"""Answers every input of a file with a prompt folder: JSONL out, in input order.

  python -m prompt_tuning.infer --gin_file=gin/infer.gin \\
    --gin.PROMPT_DIR="'runs/name/prompt'" --gin.INPUT_FILE="'inputs.txt'" \\
    --gin.OUTPUT_FILE="'answers.jsonl'"

Inputs are read with the template, the columns, the truncation and the output settings
of the prompt's card. Answers are written as they are made; the same command goes on
with what a killed one left.
"""

if __name__ == "__main__":
  # Before anything slow is imported.
  from prompt_tuning.engine import early
  from prompt_tuning.terminal import usage

  usage.show("infer")
  early.begin("prompt_tuning.infer")

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from prompt_tuning import answer, arguments
from prompt_tuning.data import beside, given, reading
from prompt_tuning.data.batches import check_labels
from prompt_tuning.data.reading import Asked
from prompt_tuning.engine import (
  config,
  conventions,
  distributed,
  ended,
  evaluate,
  members,
  partial,
)
from prompt_tuning.engine.rows import MOST_POSITIONS
from prompt_tuning.engine.sharding import DEFAULT, Placement, Sharding, on_host
from prompt_tuning.interop.load import load

# Inputs held at once: so many full batches, within which they are sorted by length, and
# no more characters than these.
BATCHES = 16
CHARACTERS = 32 << 20


def infer(
  input_file: str,
  output_file: str,
  prompt_dir: str | None = None,
  initial_checkpoint_path: str | None = None,
  vocabulary: Any = None,
  output: Any = None,
  labels: Sequence[str] | None = None,
  inputs: str | None = None,
  id_column: str | None = None,
  most_positions: int | None = MOST_POSITIONS,
  eval_batch_size: int = 64,
  force: bool = False,
  sharding: Sharding = DEFAULT,
  prompt_task: Any = None,
  task_column: str | None = None,
  external_column: str | None = None,
  external_file: str | None = None,
) -> int:
  """Writes one record an input; returns how many.

  Args:
    input_file: a table (.tsv, .csv, .jsonl, plain or .gz), or one input a line.
    output_file: JSONL with `id` (where there is an id column), `input`, `prediction`
      and scores; a number that is not finite is null. Until it is whole its lines stand
      beside it in `.NAME.partial`. It replaces answers of before, and no other file.
    prompt_dir, initial_checkpoint_path, vocabulary, force: as in `prompt_tuning.eval`.
    output: see `outputs/`; None takes the card's, or else chooses among labels where
      there are any, or else writes greedily.
    labels: for a choice; None takes those in the prompt's card, of each row's own task
      where the prompt was trained on several.
    inputs: template of an input; None takes the card's. See `data.reading`.
    id_column: of a table, kept in each record.
    most_positions: see `answer.Session`.
    eval_batch_size: rows of a batch; longer inputs come in smaller batches, see
      `engine.rows`.
    sharding: the mesh and what is divided over it, see `engine.sharding`.
    prompt_task, task_column: for a prompt that tells tasks apart, the task of all
      inputs, or the column that says each one's; by number or name.
    external_column, external_file: for a prompt that reads vectors, where they are, see
      `data.vectors`; None for both takes the card's column.

  Raises:
    ValueError: for a file that cannot be read or written or a prompt that does not fit,
      before any step is compiled; for a row further on, once those before it are
      answered.
    SystemExit: after SIGTERM, Ctrl-C or SIGHUP; the same command goes on.
  """
  _check_count("EVAL_BATCH_SIZE", eval_batch_size)
  if most_positions is not None:
    _check_count("MOST_POSITIONS", most_positions)
  if labels is not None:
    labels = arguments.labels(labels)
  file = partial.Partial("OUTPUT_FILE", output_file, answer.are_records)
  try:
    with ended.on_signals():
      prompt, checkpoint = answer.open_prompt(prompt_dir, initial_checkpoint_path)
      known = conventions.of({} if prompt is None else prompt.card)
      template = answer.given_reading(known, inputs)
      wants = given.wants(None if prompt is None else prompt.module, known.names)
      rows = beside.of(
        *(input_file, wants, template),
        *(prompt_task, task_column, external_column, external_file),
      )
      read = functools.partial(reading.asked, input_file, template, id_column, rows)
      first = next(chunks(read(), BATCHES * eval_batch_size), None)
      if first is None:
        raise ValueError(f"`INPUT_FILE` {input_file!r} holds no inputs.")
      distributed.by_first(lambda: file.check(input_file))
      place = sharding.over()
      with on_host():
        session = answer.session(load(checkpoint, None, vocabulary), prompt, force)
      session = dataclasses.replace(session, most_positions=most_positions)
      labels, output = _settings(session, labels, output)
      for own in () if output.headed else labels:
        check_labels(own, session.loaded.vocabulary)
      size = min(eval_batch_size, len(first))
      run = Run(session, labels, output, place, size, session.most(eval_batch_size))
      return run.write(read, file, BATCHES * eval_batch_size)
  except ended.EndedError as error:
    kept = file.kept_text() if distributed.is_first() else ""
    ended.say(f"{error} {kept}".strip())
    raise SystemExit(error.code) from error
  except BrokenPipeError as error:
    ended.say(f"The reader of `OUTPUT_FILE` left: {error}.", sys.stderr)
    raise SystemExit(128 + signal.SIGPIPE) from error
  except (ValueError, OSError):
    if file.done.lines:
      ended.say(file.kept_text())
    raise


@dataclasses.dataclass(frozen=True)
class Run:
  """What answers.

  Attributes:
    session: the prompt on its backbone. output: see `infer`.
    labels: for all inputs, or of each task of the prompt.
    place: the mesh and its rules. size, most: see `engine.rows.plan`.
  """

  session: answer.Session
  labels: Sequence[members.Labels]
  output: Any
  place: Placement
  size: int
  most: int

  def __post_init__(self) -> None:
    session = self.session
    vocabulary = session.loaded.vocabulary
    found = {
      labels: evaluate.predictor(
        session.model, vocabulary, labels, self.output, self.place
      )
      for labels in {None if own is None else tuple(own) for own in self.labels}
    }
    object.__setattr__(self, "_predictors", found)

  @functools.cached_property
  def _params(self) -> Any:
    return self.place.params(self.session.model, self.session.params)

  def write(
    self, read: Callable[[], Iterator[Asked]], file: partial.Partial, chunk: int
  ) -> int:
    """Answers all inputs, but those of an earlier job; the first process writes.

    Args:
      read: opens the inputs. file: of the answers. chunk: inputs held at once.
    """
    labels = self.labels if len(self.labels) > 1 else self.labels[0]
    settings = repr((self.output, labels, self.session.limit))
    belongs = {"prompt": self.session.digest, "settings": settings}
    with contextlib.ExitStack() as stack:
      distributed.by_first(lambda: stack.enter_context(file))
      done = distributed.from_first(lambda: _done(read, file.done, belongs))
      inputs, digest = read(), hashlib.sha256()
      for one in itertools.islice(inputs, done):
        digest.update(_bytes(one))
      distributed.by_first(lambda: file.start(done, digest.hexdigest(), belongs))
      count, cut = done, 0
      for number, asked in enumerate(chunks(inputs, chunk)):
        lines, more = self.lines(asked, count)
        for one in asked:
          digest.update(_bytes(one))
        add = functools.partial(file.add, lines, digest.hexdigest())
        distributed.by_first(add)
        count, cut = count + len(lines), cut + more
        # Among several processes the signal is JAX's to catch, and all end together.
        if distributed.several() and distributed.told(number):
          raise ended.EndedError(signal.SIGTERM)
      distributed.by_first(file.finish)
    if distributed.is_first():
      ended.say(self._summary(file, count, done, cut), file.screen)
    return count

  def _summary(self, file: partial.Partial, count: int, done: int, cut: int) -> str:
    words = f"{count} answers: {file.path}"
    if done:
      words += f" ({done} of them by an earlier job)"
    if cut:
      words += f"\n{self.session.cut_text(cut, count - done)}"
    return words

  def lines(self, asked: Sequence[Asked], number: int) -> tuple[list[str], int]:
    """Records of inputs as JSON, in order, and how many inputs were cut.

    Args:
      number: inputs before these.
    """
    session, texts = self.session, [one.text for one in asked]
    brought = [one.beside for one in asked]
    examples = answer.examples(session.loaded.vocabulary, texts, brought)
    layout = session.layout(examples, say=lambda *words: None)
    laid_out = layout, self.size, self.place, self.most
    records: list[Any] = [None] * len(examples)
    for labels, places in members.by_labels(examples, self.labels).items():
      run = functools.partial(self._answer, labels, np.array(places) + number)
      own = [examples[i] for i in places]
      for i, record in zip(places, evaluate.in_order(run, own, *laid_out), strict=True):
        records[i] = record
    lines = []
    for one, record in zip(asked, records, strict=True):
      key = {} if one.id is None else {"id": one.id}
      lines.append(answer.json_line({**key, "input": one.text, **record}))
    return lines, session.cut(examples)

  def _answer(self, labels: Any, numbers_X: Any, batch: Any, numbers: Any) -> Any:
    """Records of a batch of some of the inputs, whose numbers among all are given."""
    return self._predictors[labels](self._params, batch, numbers_X[numbers])


def _done(
  read: Callable[[], Iterator[Asked]], found: partial.Done, belongs: dict[str, str]
) -> int:
  """How many answers of an earlier job are those of the same inputs, made alike."""
  if not found.lines or dict(found.belongs) != belongs:
    return 0
  digest, count = hashlib.sha256(), 0
  for one in itertools.islice(read(), found.lines):
    digest.update(_bytes(one))
    count += 1
  same = count == found.lines and digest.hexdigest() == found.digest
  return count if same else 0


def chunks(inputs: Iterable[Asked], most: int) -> Iterator[list[Asked]]:
  """Lists of at most so many inputs, and of few more than `CHARACTERS` characters."""
  chunk: list[Asked] = []
  size = 0
  for one in inputs:
    chunk.append(one)
    size += len(one.text)
    if len(chunk) == most or size > CHARACTERS:
      yield chunk
      chunk, size = [], 0
  if chunk:
    yield chunk


def _settings(
  session: answer.Session, labels: Sequence[str] | None, output: Any
) -> tuple[Sequence[members.Labels], Any]:
  """Labels and output: those given, else the card's, else what labels suggest.

  Labels are one list for all inputs, or one for each task of the prompt.
  """
  if output is None:
    output = session.known.output
    if labels is not None or (output is None and session.known.labels):
      output = session.choice()
  if labels is None:
    labels = session.known.labels
  found = [session.answering(labels, output)]
  chooses = output is not None and output.labelled and not output.headed
  if labels is None and session.wants.names and chooses:
    found = [own for _, own in session.known.members]
  return found, output or session.words()


def _check_count(name: str, value: Any) -> None:
  if not isinstance(value, int) or isinstance(value, bool) or value < 1:
    raise ValueError(f"`{name}` must be a whole number from 1 on, got {value!r}.")


def _bytes(one: Asked) -> bytes:
  brought = [np.asarray(one.beside[name]).tobytes() for name in sorted(one.beside)]
  return b"".join([json.dumps([one.id, one.text]).encode(), *brought, b"\n"])


if __name__ == "__main__":
  from prompt_tuning import infer as verb
  from prompt_tuning.terminal import short

  with ended.at_once():
    config.run_verb(verb.infer, short.spelt_out("infer", sys.argv[1:]))

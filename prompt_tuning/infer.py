"""Answers every line of a file with a prompt folder: JSONL out, in input order.

  python -m prompt_tuning.infer --gin_file=gin/infer.gin \\
    --gin.PROMPT_DIR="'runs/name/prompt'" --gin.INPUT_FILE="'inputs.txt'" \\
    --gin.OUTPUT_FILE="'answers.jsonl'"
"""

if __name__ == "__main__":
  # Before anything slow is imported.
  from prompt_tuning.engine import huge_pages

  huge_pages.ask("prompt_tuning.infer")

import codecs
import functools
import gzip
import zlib
from collections.abc import Sequence
from typing import Any

from prompt_tuning import answer
from prompt_tuning.core import files
from prompt_tuning.engine import config, distributed, evaluate
from prompt_tuning.engine.sharding import DEFAULT, Sharding, on_host
from prompt_tuning.outputs.choice import Choice
from prompt_tuning.outputs.text import Greedy


def infer(
  input_file: str,
  output_file: str,
  prompt_dir: str | None = None,
  initial_checkpoint_path: str | None = None,
  output: Any = None,
  labels: Sequence[str] | None = None,
  eval_batch_size: int = 64,
  force: bool = False,
  sharding: Sharding = DEFAULT,
) -> int:
  """Writes one record a line of the input file; returns how many.

  Args:
    input_file: one input a line, UTF-8, plain or .gz.
    output_file: JSONL with `input`, `prediction` and scores.
    prompt_dir, initial_checkpoint_path, force: as in `prompt_tuning.eval`.
    output: see `outputs/`; None chooses among labels where there are any, else writes
      greedily.
    labels: for a choice; None takes those in the prompt's card.
    eval_batch_size: rows of a batch.
    sharding: the mesh and what is divided over it, see `engine.sharding`.

  Raises:
    ValueError: for an unreadable file or a prompt that does not fit, before any step
      is compiled.
  """
  texts = read_lines(input_file)
  place = sharding.over()
  with on_host():
    session = answer.open_session(prompt_dir, initial_checkpoint_path, force)
  if labels is None and session.prompt is not None:
    labels = session.prompt.card.get("task", {}).get("labels")
  if output is None:
    output = Choice() if labels else Greedy(32)
  vocabulary = session.loaded.vocabulary
  examples = answer.examples(vocabulary, texts)
  run = evaluate.predictor(session.model, vocabulary, labels, output, place)
  params = place.params(session.model, session.params)
  records = evaluate.in_order(
    functools.partial(run, params),
    examples,
    session.layout(examples),
    eval_batch_size,
    place,
  )
  lines = [
    {"input": text, **record} for text, record in zip(texts, records, strict=True)
  ]
  if distributed.is_first():
    answer.write_lines(output_file, lines)
    print(f"{len(lines)} answers: {output_file}")
  return len(lines)


def read_lines(path: str) -> list[str]:
  """The lines of a UTF-8 file, plain or .gz.

  Raises:
    ValueError: naming the first line that is not UTF-8, or an empty file.
  """
  file = files.at(path)
  if not file.is_file():
    raise ValueError(f"`INPUT_FILE` is {path!r}, which does not exist.")
  data = file.read_bytes()
  if file.suffix == ".gz":
    try:
      data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
      raise ValueError(f"{path!r} is no whole gzip file: {error}.") from error
  lines = []
  for number, line in enumerate(data.removeprefix(codecs.BOM_UTF8).splitlines(), 1):
    try:
      lines.append(line.decode("utf-8"))
    except UnicodeDecodeError as error:
      raise ValueError(
        f"{path}:{number}: not UTF-8 ({error.reason}). Convert the file first."
      ) from error
  if not lines:
    raise ValueError(f"`INPUT_FILE` {path!r} holds no lines.")
  return lines


if __name__ == "__main__":
  from prompt_tuning import infer as verb

  config.run_verb(verb.infer)

"""Evaluates a prompt folder on a split of a task.

  python -m prompt_tuning.eval --gin_file=gin/eval.gin --gin_file=gin/tasks/sst2.gin \\
    --gin.PROMPT_DIR="'runs/name/prompt'" --gin.DATA_DIR="'data'" \\
    --gin.EVAL_DIR="'runs/name/eval'"
"""

if __name__ == "__main__":
  # Before anything slow is imported.
  from prompt_tuning.engine import early
  from prompt_tuning.terminal import usage

  usage.show("eval")
  early.begin("prompt_tuning.eval")

import json
import logging
from collections.abc import Sequence
from typing import Any

from prompt_tuning import answer
from prompt_tuning.core import files
from prompt_tuning.data import given
from prompt_tuning.data.batches import check_targets
from prompt_tuning.engine import (
  config,
  conventions,
  distributed,
  ended,
  evaluate,
  heads,
  members,
  terms,
)
from prompt_tuning.engine.examples import read
from prompt_tuning.engine.sharding import DEFAULT, Placement, Sharding, on_host
from prompt_tuning.objectives.cross_entropy import CrossEntropy
from prompt_tuning.objectives.objective import parts


def evaluate_prompt(
  eval_dir: str,
  task: Any,
  prompt_dir: str | None = None,
  initial_checkpoint_path: str | None = None,
  vocabulary: Any = None,
  split: str = "validation",
  output: Any = None,
  eval_batch_size: int = 64,
  force: bool = False,
  sharding: Sharding = DEFAULT,
  prompt_task: Any = None,
) -> dict[str, float]:
  """Writes EVAL_DIR/metrics-SPLIT.json and predictions-SPLIT.jsonl.

  Inputs are cut as in training. A number that is not finite is null in both files.

  Args:
    eval_dir: where the files go; those of an evaluation before are replaced, no others.
    task: `data.task.TextTask`.
    prompt_dir: a `prompt/` folder; None evaluates the bare model.
    initial_checkpoint_path: the backbone; None takes the one named in the card.
    vocabulary: see `interop.vocabulary.located`; None takes the one beside the
      backbone.
    split: of the task. output: see `outputs/`; None takes the card's.
    eval_batch_size: rows of a batch.
    force: use a prompt that was trained on another backbone.
    sharding: the mesh and what is divided over it, see `engine.sharding`.
    prompt_task: for a prompt that tells tasks apart, which of its tasks this is, by
      number or name; None takes the one of the task's name, or those of a mixture.

  Raises:
    ValueError: for anything that does not fit, before any step is compiled.
  """
  place = sharding.over()
  with ended.in_one_line():
    distributed.by_first(lambda: _check_places(eval_dir, split))
    with on_host():
      session = answer.open_session(
        prompt_dir, initial_checkpoint_path, force, vocabulary
      )
    for words in conventions.differences(session.known, task):
      logging.warning("The task has %s; the task's own are used.", words)
    if output is None:
      output = card_output(session, task)
    session.answering(task.labels, output)
    numbered = session.model.head is not None
    examples = read(task, session.loaded.vocabulary, split, None, numbered)
    examples = session.wants.numbered(examples, task.name, prompt_task)
    given.checked(examples, session.wants, split)
    if not numbered:
      check_targets(examples, session.loaded.vocabulary, split, task.labels)
    scores, lines = answered(
      session, task, examples, split, output, eval_batch_size, place
    )
  if not distributed.is_first():
    return scores
  metrics, predictions = _places(eval_dir, split)
  if lines:
    answer.write_lines(predictions, lines)
  text = json.dumps(answer.finite(scores), indent=2, allow_nan=False) + "\n"
  files.write_text(metrics, text, _are_scores)
  shown = "  ".join(f"{name} {value:.4g}" for name, value in scores.items())
  words = f"{split} ({len(examples)} examples): {shown}\nfiles: {metrics.parent}"
  ended.say(words)
  return scores


# As every file of scores begins.
_are_scores = files.begins(b'{\n  "loss": ')


def _places(eval_dir: str, split: str) -> tuple[Any, Any]:
  """The files of scores and of predictions."""
  folder = files.at(eval_dir)
  return folder / f"metrics-{split}.json", folder / f"predictions-{split}.jsonl"


def _check_places(eval_dir: str, split: str) -> None:
  """Refuses a folder that cannot be written, and to replace files of others."""
  metrics, predictions = _places(eval_dir, split)
  if not files.is_remote(eval_dir):
    files.check_writable("EVAL_DIR", eval_dir, eval_dir)
  files.check_replaceable(metrics, _are_scores)
  files.check_replaceable(predictions, answer.are_records)


def answered(
  session: answer.Session,
  task: Any,
  examples: Sequence[Any],
  split: str,
  output: Any,
  size: int,
  place: Placement,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
  """Scores of a split, and a record an example where there is an output."""
  vocabulary, objective = session.loaded.vocabulary, _objective(session, task)
  heads.check(session.model, objective, output, task)
  evaluator = evaluate.Evaluator(
    session.model,
    objective,
    session.layout(examples, targets=True, cut_targets=True),
    vocabulary,
    task,
    output,
    min(size, len(examples)),
    place,
    session.most(size),
  )
  params = place.params(session.model, session.params)
  scores = evaluator.loss(params, examples)
  if output is None:
    return scores, []
  records = evaluator.predict(params, examples)
  texts = task.examples(split)
  scores.update(task.score([record["prediction"] for record in records], split))
  lines = [
    {"input": text["inputs"], "target": text["targets"], **record}
    for text, record in zip(texts, records, strict=True)
  ]
  return scores, lines


def _objective(session: answer.Session, task: Any) -> Any:
  """What training lowered, as far as a prompt alone can tell it."""
  known = {} if session.prompt is None else session.prompt.card
  found = terms.answering(terms.of(known))
  if not task.labels and any(part.objective.labelled for part in parts(found)):
    logging.warning("The task has no LABELS, which the prompt's objective compares.")
    found = CrossEntropy()
  return terms.bound(found, session.loaded.vocabulary, task)


def card_output(session: answer.Session, task: Any) -> Any:
  """The output that the prompt was trained with, where the task allows it."""
  output = session.known.output
  chooses = output is not None and output.labelled
  if chooses and not all(one.labels for one in members.of(task)):
    logging.warning(
      "The task has no LABELS, among which the prompt's card chooses: the loss alone "
      "is given. Set LABELS, or include a file of gin/outputs/."
    )
    return None
  return output


if __name__ == "__main__":
  import sys

  from prompt_tuning import eval as verb
  from prompt_tuning.terminal import short

  with ended.at_once():
    config.run_verb(verb.evaluate_prompt, short.spelt_out("eval", sys.argv[1:]))

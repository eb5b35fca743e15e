"""Evaluates a prompt folder on a split of a task.

  python -m prompt_tuning.eval --gin_file=gin/eval.gin --gin_file=gin/tasks/sst2.gin \\
    --gin.PROMPT_DIR="'runs/name/prompt'" --gin.DATA_DIR="'data'" \\
    --gin.EVAL_DIR="'runs/name/eval'"
"""

if __name__ == "__main__":
  # Before anything slow is imported.
  from prompt_tuning.engine import huge_pages

  huge_pages.ask("prompt_tuning.eval")

import json
from typing import Any

from prompt_tuning import answer
from prompt_tuning.core import files
from prompt_tuning.engine import config, distributed, evaluate
from prompt_tuning.engine.examples import read
from prompt_tuning.engine.sharding import DEFAULT, Sharding, on_host
from prompt_tuning.objectives.cross_entropy import CrossEntropy


def evaluate_prompt(
  eval_dir: str,
  task: Any,
  prompt_dir: str | None = None,
  initial_checkpoint_path: str | None = None,
  split: str = "validation",
  output: Any = None,
  eval_batch_size: int = 64,
  force: bool = False,
  sharding: Sharding = DEFAULT,
) -> dict[str, float]:
  """Writes EVAL_DIR/metrics-SPLIT.json and predictions-SPLIT.jsonl.

  Args:
    eval_dir: where the files go. task: `data.task.TextTask`.
    prompt_dir: a `prompt/` folder; None evaluates the bare model.
    initial_checkpoint_path: the backbone; None takes the one named in the card.
    split: of the task. output: see `outputs/`.
    eval_batch_size: rows of a batch.
    force: use a prompt that was trained on another backbone.
    sharding: the mesh and what is divided over it, see `engine.sharding`.

  Raises:
    ValueError: for anything that does not fit, before any step is compiled.
  """
  place = sharding.over()
  with on_host():
    session = answer.open_session(prompt_dir, initial_checkpoint_path, force)
  vocabulary = session.loaded.vocabulary
  examples = read(task, vocabulary, split)
  layout = session.layout(examples, targets=True)
  objective, size = CrossEntropy(), eval_batch_size
  evaluator = evaluate.Evaluator(
    session.model, objective, layout, vocabulary, task, output, size, place
  )
  params = place.params(session.model, session.params)
  scores = evaluator.loss(params, examples)
  folder = files.at(eval_dir)
  if output is not None:
    records = evaluator.predict(params, examples)
    texts = task.examples(split)
    scores.update(task.score([record["prediction"] for record in records], split))
    lines = [
      {"input": text["inputs"], "target": text["targets"], **record}
      for text, record in zip(texts, records, strict=True)
    ]
    if distributed.is_first():
      answer.write_lines(folder / f"predictions-{split}.jsonl", lines)
  if not distributed.is_first():
    return scores
  text = json.dumps(scores, indent=2) + "\n"
  files.write_text(folder / f"metrics-{split}.json", text)
  shown = "  ".join(f"{name} {value:.4g}" for name, value in scores.items())
  print(f"{split} ({len(examples)} examples): {shown}")
  print(f"files: {folder}")
  return scores


if __name__ == "__main__":
  from prompt_tuning import eval as verb

  config.run_verb(verb.evaluate_prompt)

"""What `eval` and `infer` share: a prompt on its backbone, ready to answer."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prompt_tuning.core import files
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.data import vocabularies
from prompt_tuning.data.features import ROUND, Layout
from prompt_tuning.data.task import split_mark
from prompt_tuning.engine import product
from prompt_tuning.interop import prompts
from prompt_tuning.interop.load import Loaded, load


@dataclasses.dataclass(frozen=True)
class Session:
  """Attributes:
  loaded: the backbone. prompt: its product, or None for the bare model.
  model, params: both together.
  """

  loaded: Loaded
  prompt: product.Product | None
  model: PromptedModel
  params: Any

  def layout(
    self, examples: Sequence[Mapping[str, Any]], targets: bool = False
  ) -> Layout:
    """The prompt's own place, and lengths that hold these examples whole."""
    longest = max(len(example["inputs"]) for example in examples)
    place = "front" if self.prompt is None else self.prompt.layout.get("place", "front")
    lengths = self.model.lengths
    return Layout(
      -(-longest // ROUND) * ROUND,
      max(len(example["targets"]) for example in examples) if targets else 1,
      lengths.get("encoder", 0),
      lengths.get("decoder", 0),
      place,
    )


def session(
  loaded: Loaded, prompt: product.Product | None, force: bool = False
) -> Session:
  """Puts a prompt on a backbone.

  Raises:
    ValueError: if it belongs to another one.
  """
  if prompt is None:
    model = PromptedModel(loaded.backbone)
    return Session(loaded, None, model, {"backbone": loaded.params})
  prompt.check(loaded.fingerprint, loaded.backbone.spec.width, force)
  model = PromptedModel(loaded.backbone, prompt.module)
  return Session(loaded, prompt, model, prompt.params(loaded.params))


def open_session(
  prompt_dir: str | None, checkpoint: str | None = None, force: bool = False
) -> Session:
  """Loads a `prompt/` folder and its backbone (the card's, if none is given)."""
  prompt = None if prompt_dir is None else prompts.load(prompt_dir)
  if checkpoint is None:
    if prompt is None:
      raise ValueError(
        "`PROMPT_DIR` and `INITIAL_CHECKPOINT_PATH` are both None; give at least one."
      )
    checkpoint = prompt.backbone
  return session(load(checkpoint), prompt, force)


def examples(vocabulary: Any, texts: Iterable[str]) -> list[dict[str, Any]]:
  """Tokenised inputs without targets; `<prompt>` in a text marks the prompt's place."""
  found = []
  for text in texts:
    before, rest = split_mark(text)
    mark = -1 if before is None else len(vocabularies.encode(vocabulary, before))
    found.append(
      {
        "inputs": vocabularies.with_end(vocabulary, rest),
        "targets": [vocabulary.eos_id],
        "mark": mark,
      }
    )
  return found


def write_lines(path: Any, records: Iterable[Mapping[str, Any]]) -> None:
  """Writes JSONL, whole or not at all."""
  lines = [json.dumps(record, ensure_ascii=False) for record in records]
  files.write_text(path, "".join(line + "\n" for line in lines))

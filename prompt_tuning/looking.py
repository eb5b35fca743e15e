"""What a prompt is, and what a method would train: texts for a notebook."""

from collections.abc import Mapping
from typing import Any

from prompt_tuning import arguments, keywords, sources, tuning
from prompt_tuning.core import trainable as branches
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.engine import gin_state, nearest
from prompt_tuning.engine.listed import Text, share, table
from prompt_tuning.engine.product import Product
from prompt_tuning.wishes import wished

# Two pairs that every method can be read with.
PAIRS = [("a", "b"), ("c", "d")]
# Arrays of a summary that are named one by one.
SHOWN = 12


def summary(loaded: Any, method: str, overrides: Mapping[str, Any]) -> Text:
  """See `api.Model.summary`."""
  settings = _settings(loaded.name, method, overrides)
  model = PromptedModel(loaded.backbone, settings["PROMPT"], head=settings["HEAD"])
  params = {
    "backbone": loaded.params,
    "prompt": model.prompt_shapes(loaded.params),
    "head": model.head_shapes(),
  }
  params = {name: tree for name, tree in params.items() if tree}
  named = model.trains(settings["RECIPE"].trainable)
  trained, frozen = branches.split(params, named)
  count, arrays = branches.count(trained), branches.flatten(trained)
  part = share(count, count + branches.count(frozen))
  rows = [
    ("backbone", f"{loaded.name} ({loaded.backbone.family})"),
    ("numbers", f"{branches.count(loaded.params):,}"),
    ("method", method),
    ("trains", f"{count:,} ({part} of all)" if count else "nothing"),
    *_shapes(dict(list(arrays.items())[:SHOWN])),
  ]
  if len(arrays) > SHOWN:
    rows.append(("...", f"and {len(arrays) - SHOWN} more arrays"))
  rows += [
    ("positions", f"{length} in front of the {side}")
    for side, length in model.lengths.items()
    if length
  ]
  return lines(rows)


def _settings(
  backbone: str, method: str, overrides: Mapping[str, Any]
) -> dict[str, Any]:
  """What `tune` would be made of."""
  wish = wished(
    *(sources.read("train", PAIRS), None, None, None, None),
    method=arguments.text("method", method),
    init=None,
    steps=tuning.STEPS,
    seed=0,
    optimizer=None,
    overrides=keywords.checked(overrides, True),
  )
  with keywords.in_words(), gin_state.isolated():
    longest = {"inputs": tuning.ROUND, "targets": tuning.ROUND}
    return tuning.settings_of(wish, longest, backbone)[0]


def _shapes(arrays: Mapping[str, Any]) -> list[tuple[str, str]]:
  """Names of arrays and their sizes."""
  return [
    (name, " x ".join(map(str, leaf.shape)) or "a number")
    for name, leaf in arrays.items()
  ]


def inspect(prompt: Product, k: int = 3, model: Any = None) -> Text:
  """What a prompt is: its card in words, its arrays, the words that it is near.

  Args:
    prompt: of `tune` or `load_prompt`. k: nearest words shown of each position.
    model: of `load_model`; None takes the one that it was tuned on.

  Raises:
    ValueError: for anything that is no prompt.

  >>> import prompt_tuning as pt
  >>> model = pt.load_model("mini")
  >>> pairs = [("a film", "good"), ("a play", "bad")]
  >>> prompt = pt.tune(model, pairs, steps=0, prompt_length=2, progress=False)
  >>> print(pt.inspect(prompt).splitlines()[0])
  method        prompt_tuning
  """
  if not isinstance(prompt, Product):
    raise ValueError(f"`prompt` is {prompt!r}; give what `tune` or `load_prompt` gave.")
  card = prompt.card
  task = card.get("task", {})
  scores = card.get("scores") or {}
  rows = [
    ("method", card.get("method")),
    ("backbone", card.get("backbone", {}).get("name")),
    ("fingerprint", prompt.fingerprint),
    ("task", task.get("name")),
    ("labels", ", ".join(task.get("labels") or ())),
    ("inputs", (card.get("reading") or {}).get("inputs")),
    ("step", card.get("step")),
    ("scores", "  ".join(f"{name} {value:.4g}" for name, value in scores.items())),
    ("trained", f"{prompt.parameters:,} numbers"),
  ]
  rows += _shapes(branches.flatten(prompt.trainable))
  text = lines([(name, value) for name, value in rows if value not in (None, "")])
  loaded = prompt.made.loaded if model is None else model.loaded
  fixed = prompt.module is not None and not prompt.module.reads_input
  if loaded is not None and fixed and nearest.vectors(prompt, loaded):
    found = nearest.tokens(prompt, loaded, k)
    text = f"{text}\n\n{table(found.columns, found)}"
  return Text(text)


def lines(rows: list[tuple[str, Any]]) -> Text:
  """Names and values, aligned."""
  size = max(len(name) for name, _ in rows) + 2
  return Text("\n".join(f"{name:<{max(size, 14)}}{value}" for name, value in rows))

"""The product of a run: the folder `prompt/` with prompt.safetensors and card.json.

It loads without gin, is readable with numpy and json alone, and refuses a backbone
whose fingerprint is another. Reading one runs nothing that its files say: see
`engine.card` and `core.describe`.
"""

import copy
import dataclasses
import hashlib
import json
import logging
from typing import Any

import jax
import numpy as np
from safetensors import numpy as safetensors_numpy

from prompt_tuning.core import describe
from prompt_tuning.core.files import at, is_remote
from prompt_tuning.core.folders import current, stated, whole_folder
from prompt_tuning.core.trainable import flatten, unflatten, within
from prompt_tuning.engine import card as cards
from prompt_tuning.engine import curves, nearest
from prompt_tuning.engine.listed import Rows, Text
from prompt_tuning.engine.made import Made

FORMAT = "prompt_tuning/prompt/1"
CARD, TENSORS = "card.json", "prompt.safetensors"
# What of a product is a module, and stands in its card as words.
WORDS = ("module", "head")
# What stands in a folder of ours, and may be replaced.
OWNED = stated(CARD, {"format": FORMAT}, [TENSORS])

# Backbones that have a name of their own, for which nothing is fetched.
NAMED = ("mini", "minilm", "smollm2")


@dataclasses.dataclass(repr=False)
class Product:
  """A trained prompt: what trained, and what it is.

  Attributes:
    module: the prompt (`core.prompt`), or None where the backbone itself trained.
    trainable: trained branches, {"prompt": ...} or {"backbone": ...}, numpy float32.
    frozen: branches of the prompt that did not train (a fixed table, say).
    card: method, letters, backbone, task, step, scores; plain data.
    head: answers in other than words (`heads/`), or None.
    made: how it came about, where this process knows; nothing of it is saved.

  >>> import prompt_tuning as pt
  >>> model = pt.load_model("mini")
  >>> pairs = [("a lovely film", "good"), ("a dull film", "bad")] * 4
  >>> prompt = pt.tune(model, pairs, steps=2, prompt_length=2, progress=False)
  >>> prompt.history.columns[:3], prompt.history[-1]["step"]
  (['step', 'split', 'cross_entropy'], 2)
  >>> [len(row["nearest"]) for row in prompt.nearest_tokens(3)]
  [3, 3]
  >>> [line for line in prompt.to_gin().splitlines() if "include" in line][-1]
  'include "gin/outputs/choice.gin"'
  >>> type(prompt.plot()).__name__
  'Figure'
  """

  module: Any
  trainable: Any
  card: dict[str, Any]
  frozen: Any = dataclasses.field(default_factory=dict)
  head: Any = None
  made: Made = dataclasses.field(default_factory=Made, compare=False)

  def __repr__(self) -> str:
    backbone = self.card.get("backbone", {}).get("name")
    found = {"method": self.card.get("method"), "trained": self.parameters}
    found |= {"step": self.card.get("step"), "backbone": backbone}
    scores = self.card.get("scores") or {}
    words = [f"{name}={value!r}" for name, value in found.items() if value is not None]
    words += [f"{name}={value:.4g}" for name, value in scores.items()]
    return f"Product({', '.join(words)})"

  def __getstate__(self) -> dict[str, Any]:
    # As its card says it: how a parameter was first drawn is code, and is done with.
    words = {name: describe.describe(getattr(self, name)) for name in WORDS}
    return {**vars(self), **words, "made": self.made.light}

  def __setstate__(self, state: dict[str, Any]) -> None:
    words = {name: describe.rebuild(state.get(name)) for name in WORDS}
    vars(self).update({"made": Made(), **state, **words})

  def __deepcopy__(self, memo: dict[int, Any]) -> "Product":
    values = copy.deepcopy((self.trainable, self.card, self.frozen), memo)
    return Product(self.module, *values, self.head, self.made)

  @property
  def fingerprint(self) -> str | None:
    """Digest of the backbone that it was trained on."""
    return self.card.get("backbone", {}).get("fingerprint")

  @property
  def backbone(self) -> str:
    """The backbone that the card names: one of `NAMED`, or a folder on this machine.

    Raises:
      ValueError: for one that would be fetched. A card comes from whoever wrote it, and
        does not decide what this machine asks of others; whoever loads it may.
    """
    name = self.card.get("backbone", {}).get("name")
    if not name:
      raise ValueError(
        "The prompt names no backbone. Set `INITIAL_CHECKPOINT_PATH` (`checkpoint` of "
        "an export) to the one that it was trained on."
      )
    if name not in NAMED and (is_remote(name) or not at(name).exists()):
      raise ValueError(
        f"The prompt was trained on the backbone {name!r}, which is no folder here; "
        "what only a card names is not fetched. Set `INITIAL_CHECKPOINT_PATH` "
        f"(`checkpoint` of an export) to {name!r}, if you trust that place, or to a "
        "copy of it."
      )
    return name

  @property
  def parameters(self) -> int:
    """How many numbers were trained."""
    return sum(leaf.size for leaf in jax.tree.leaves(self.trainable))

  @property
  def history(self) -> Rows:
    """A row for each line of metrics: of `tune`, or of the run that it lies in.

    >>> Product(None, {}, {}).history.columns
    []
    """
    return self.made.history

  def plot(self, file: Any = None) -> Any:
    """The learning curve as a matplotlib figure, written to `file` if one is given.

    Raises:
      ValueError: if nothing is known of its history.
    """
    figure = curves.figure(self.history)
    if figure is None:
      raise ValueError(
        "There is no history to draw. A prompt of `tune` has one, and one that is "
        "loaded from a run's folder."
      )
    if file is not None:
      figure.savefig(file)
    return figure

  def nearest_tokens(self, k: int = 3, model: Any = None) -> Rows:
    """The k tokens of the vocabulary nearest to each position, by cosine.

    Args:
      k: tokens a position. model: of `load_model`; None takes the one that it was tuned
        on.

    Raises:
      ValueError: without a model, or for a prompt that writes no embeddings without
        reading an input.
    """
    loaded = self.made.loaded if model is None else getattr(model, "loaded", None)
    return nearest.tokens(self, loaded, k)

  def to_gin(self) -> Text:
    """The recipe of a run of `train` that makes the same prompt.

    Raises:
      ValueError: for a prompt that this process did not tune, or one whose arguments
        gin cannot say.
    """
    if self.made.gin is None:
      raise ValueError(
        "Only `tune` knows the recipe of what it made. A run keeps its own in "
        "config.gin, and card.json holds it as text."
      )
    return self.made.gin()

  @property
  def layout(self) -> dict[str, Any]:
    """Feature lengths and the prompt's place, as trained."""
    return dict(self.card.get("layout", {}))

  def params(self, backbone: Any) -> dict[str, Any]:
    """The whole parameter tree on a backbone's weights.

    Raises:
      ValueError: for weights of a backbone that this one does not have.
    """
    flat = {f"backbone/{k}": v for k, v in flatten(backbone).items()}
    own = {**flatten(self.frozen), **flatten(self.trainable)}
    for name, value in own.items():
      there = getattr(flat.get(name), "shape", None)
      if within(name, "backbone") and there != value.shape:
        raise ValueError(
          f"The product holds {name} {value.shape}, and the backbone has "
          f"{there or 'no such array'}. Load the backbone that it was trained on."
        )
    return unflatten({**flat, **own})

  def check(self, fingerprint: str, width: int, force: bool = False) -> None:
    """Raises ValueError where the prompt does not belong to a backbone."""
    ours = self.card.get("backbone", {})
    if ours.get("width") not in (None, width):
      raise ValueError(
        f"The prompt is for a backbone of width {ours['width']}, this one has {width}. "
        "Load the backbone that the prompt was trained on."
      )
    if not force and self.fingerprint not in (None, fingerprint):
      raise ValueError(
        f"The prompt was trained on backbone {self.fingerprint}, this one is "
        f"{fingerprint}. Load that backbone, or pass force=True if you know that they "
        "fit."
      )
    replaced = {**self.frozen, **self.trainable}.get("backbone")
    if replaced and self.module is not None:
      logging.warning(
        "The product holds %d arrays of the backbone too, which take the place of the "
        "loaded ones.",
        len(flatten(replaced)),
      )

  def save(self, folder: Any, ours: bool = False) -> None:
    """Writes prompt.safetensors and card.json, whole or not at all.

    What else the folder holds stays; a prompt that was saved there before is replaced.

    Args:
      folder: made if it does not exist.
      ours: replace both files whatever they hold, in a run's own folder.

    Raises:
      ValueError: if a file of another kind stands in the way.
    """
    tensors = {
      name: np.asarray(value, np.float32, order="C")
      for name, value in {**flatten(self.frozen), **flatten(self.trainable)}.items()
    }
    written = safetensors_numpy.save(tensors)
    head = {} if self.head is None else {"head": describe.describe(self.head)}
    card = {
      "format": FORMAT,
      **self.card,
      "module": describe.describe(self.module),
      **head,
      "branches": sorted({name.partition("/")[0] for name in tensors}),
      "trained": sorted(flatten(self.trainable)),
      "shapes": {name: list(value.shape) for name, value in tensors.items()},
      "digest": hashlib.sha256(written).hexdigest(),
    }
    owned = (lambda folder: [CARD, TENSORS]) if ours else OWNED
    with whole_folder(folder, owned, [CARD, TENSORS]) as aside:
      (aside / TENSORS).write_bytes(written)
      text = json.dumps(card, indent=2, ensure_ascii=False)
      (aside / CARD).write_text(text + "\n", encoding="utf-8")


def load(folder: Any) -> Product:
  """Reads a `prompt/` folder (or the MODEL_DIR that holds one), here or remote.

  Raises:
    ValueError: if it is no such folder, or its files are damaged, do not fit each other
      or hold what no prompt holds.
  """
  folder = at(folder)
  if not current(folder, CARD).is_file() and (folder / "prompt").is_dir():
    folder = folder / "prompt"
  for name in (CARD, TENSORS):
    if not current(folder, name).is_file():
      raise ValueError(
        f"{str(folder)!r} holds no {name}. Give the folder `prompt/` of a run."
      )
  card = cards.read(current(folder, CARD), FORMAT)
  where = current(folder, TENSORS)
  try:
    data = where.read_bytes()
    tensors = safetensors_numpy.load(data)
  except Exception as error:  # a damaged file raises whatever its reader raises
    raise ValueError(f"{str(where)!r} is damaged: {error}.") from error
  shapes = {name: list(value.shape) for name, value in tensors.items()}
  digest = card.pop("digest", None)
  if shapes != card["shapes"] or digest not in (None, hashlib.sha256(data).hexdigest()):
    raise ValueError(
      f"In {str(folder)!r}, {TENSORS} is not what {CARD} says: "
      f"{_differ(shapes, card)}. Copy both files from the same run."
    )
  return _rebuilt(folder, card, tensors)


def _differ(shapes: dict[str, Any], card: dict[str, Any]) -> str:
  for name in sorted({*shapes, *card["shapes"]}):
    there, said = shapes.get(name), card["shapes"].get(name)
    if there != said:
      return f"{name}: {there} there, {said} in the card"
  return "other numbers of the same shapes"


def _rebuilt(folder: Any, card: dict[str, Any], tensors: dict[str, Any]) -> Product:
  where = str(folder / CARD)
  try:
    module = describe.rebuild(card.pop("module"))
    _check_module(module)
    head = describe.rebuild(card.pop("head", None))
    _check_head(head)
  except Exception as error:  # a damaged card may describe anything
    raise ValueError(f"{where!r} describes no prompt: {error}") from error
  trained = card.pop("trained")
  for name, value in tensors.items():
    _check_tensor(f"{str(folder / TENSORS)!r} holds {name!r}", value)
    may = ["prompt"] if module is not None else ["backbone"]
    if "backbone" in card.get("branches", []):
      may.append("backbone")
    if head is not None:
      may.append("head")
    if not any(within(name, branch) and name != branch for branch in may):
      raise ValueError(
        f"{str(folder / TENSORS)!r} holds {name!r}, but a product of this kind holds "
        f"only {' and '.join(may)}. Take prompts from whom you trust."
      )
  rest = {name: value for name, value in tensors.items() if name not in trained}
  return Product(
    module,
    unflatten({name: tensors[name] for name in trained}),
    card,
    unflatten(rest),
    head,
  )


def _check_module(module: Any) -> None:
  """Refuses what is no prompt, or a prompt of parts that do not fit each other."""
  if module is None:
    return
  lengths = module.lengths
  whole = all(isinstance(value, int) for value in lengths.values())
  if not whole or not set(lengths) <= {"encoder", "decoder"}:
    raise ValueError(f"it reserves {lengths}.")
  for fact in (module.needs, module.external_width, module.tasks, module.encoded):
    hash(fact)


def _check_head(head: Any) -> None:
  """Refuses what is no head."""
  if head is not None and not isinstance(getattr(head, "view", None), str):
    raise ValueError(f"its head is {type(head).__name__}, which is none.")


def _check_tensor(what: str, value: Any) -> None:
  if value.dtype.kind != "f":
    raise ValueError(f"{what} of the type {value.dtype}; a prompt holds float32.")
  if not np.isfinite(value).all():
    raise ValueError(
      f"{what}, which holds a number that is not finite. A run that diverged, or a "
      "damaged file: take an earlier one."
    )

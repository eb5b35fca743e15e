"""Several products of one sentence as one, of which each text asks its own."""

import reprlib
from collections.abc import Mapping
from typing import Any

from prompt_tuning.core.gallery import Gallery
from prompt_tuning.engine import conventions
from prompt_tuning.engine.conventions import Conventions
from prompt_tuning.engine.product import Product


def combine(products: Mapping[str, Product], inputs: str | None = None) -> Product:
  """One product that holds the prompts of several, picked by `task`.

  Asked with a task, by its name or its number in order, it answers as that product
  alone. The card keeps each one's labels and scores.

  Args:
    products: name -> product, at least one, of one sentence and one backbone.
    inputs: template of a whole input for all; None takes the one that all were trained
      with.

  Raises:
    ValueError: for products that do not go together, saying in what they differ.
  """
  if not isinstance(products, Mapping) or not products:
    raise ValueError(
      f"`products` is {reprlib.repr(products)}; give a mapping of at least one prompt, "
      "such as {'film': prompt, 'food': other}."
    )
  for name, product in products.items():
    _check(name, product)
  known = {name: conventions.of(product.card) for name, product in products.items()}
  first = next(iter(products.values()))
  _same(products, "backbone", lambda name: products[name].fingerprint)
  _same(products, "place of the prompt", lambda name: known[name].place)
  _same(
    products,
    "length to which inputs are cut",
    lambda name: known[name].inputs if known[name].truncate else None,
  )
  if inputs is None:
    _same(
      products,
      "template of inputs",
      lambda name: known[name].reading and known[name].reading.inputs,
      "Give `inputs`, a template for all, such as '{text}' for a text as it is.",
    )
  modules = {n: x.module.clone(_deep_clone=True) for n, x in products.items()}
  branches = {}
  for kind in ("trainable", "frozen"):
    own = {n: getattr(x, kind).get("prompt") for n, x in products.items()}
    own = {name: tree for name, tree in own.items() if tree}
    branches[kind] = {"prompt": own} if own else {}
  card = _card(products, known, inputs)
  module = Gallery(modules)
  card["layout"] = {**first.card.get("layout", {}), **_lengths(known)}
  return Product(module, branches["trainable"], card, branches["frozen"])


def _check(name: str, product: Any) -> None:
  if not isinstance(product, Product) or product.module is None:
    raise ValueError(
      f"`products[{name!r}]` is {type(product).__name__} without a prompt; give what "
      "`tune` or `load_prompt` returns."
    )
  if {"backbone"} & {*product.trainable, *product.frozen}:
    raise ValueError(
      f"`products[{name!r}]` holds weights of the backbone, of which there is one for "
      "all. Combine prompts that leave it as it is."
    )
  if product.module.tasks:
    raise ValueError(
      f"`products[{name!r}]` tells {product.module.tasks} tasks apart itself. Combine "
      "prompts of one task each."
    )


def _same(
  products: Mapping[str, Product], what: str, fact: Any, fix: str = "Leave one out."
) -> None:
  found = {name: fact(name) for name in products}
  if len(set(found.values())) > 1:
    raise ValueError(f"`products` differ in the {what}: {found}. {fix}")


def _lengths(known: Mapping[str, Conventions]) -> dict[str, int]:
  """Lengths that hold what any of them was trained on."""
  found = {}
  for name in ("inputs", "targets"):
    sizes = [getattr(one, name) for one in known.values()]
    if None not in sizes:
      found[name] = max(sizes)
  return found


def _card(
  products: Mapping[str, Product],
  known: Mapping[str, Conventions],
  inputs: str | None,
) -> dict[str, Any]:
  cards = {name: product.card for name, product in products.items()}
  first = next(iter(cards.values()))
  tasks = [
    {"name": name, "labels": list(one.labels) if one.labels else None}
    for name, one in known.items()
  ]
  labels = [task["labels"] for task in tasks]
  reading = first.get("reading") if inputs is None else {"inputs": inputs}
  if reading is not None:
    # How labels were read is each one's own.
    kept = ("inputs", "quoted", "external_column")
    reading = {name: reading[name] for name in kept if name in reading}
  outputs = [card.get("output") for card in cards.values()]
  methods = dict.fromkeys(card.get("method") for card in cards.values())
  scores = {
    f"{name}/{metric}": value
    for name, card in cards.items()
    for metric, value in (card.get("scores") or {}).items()
  }
  return {
    "method": " and ".join(str(method) for method in methods),
    "backbone": first.get("backbone", {}),
    "reading": reading,
    "output": outputs[0] if all(one == outputs[0] for one in outputs) else None,
    "task": {
      "name": "combined",
      "labels": labels[0] if all(one == labels[0] for one in labels) else None,
      "metrics": [],
      "tasks": tasks,
    },
    "step": max(card.get("step") or 0 for card in cards.values()),
    "scores": scores,
    "versions": first.get("versions", {}),
  }
